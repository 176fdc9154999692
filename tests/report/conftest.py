"""Pages of tiny runs for the tests in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import opened
from commands import launch

if TYPE_CHECKING:
    from playwright import sync_api as playwright


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    """One browser for every test that opens a page."""
    with opened() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def report_page(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A diagnosis of a tiny random model."""
    out = tmp_path_factory.mktemp("browser") / "run"
    words = ["--only", "flow", "--only", "surfacing", "--limit", "4", "--out", out]
    ended = launch("diagnose", "--model", checkpoint("llava_onevision"), *words)
    assert ended.code == 0, ended.err
    return out / "report.html"


@pytest.fixture(scope="session")
def compare_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted comparison with fixed and broken questions, and one subtask that is too small."""
    from two_answered_runs import two_runs

    from kvfix.compare.run import Options, compare

    folder = tmp_path_factory.mktemp("compared")
    before, after = two_runs(folder)
    options = Options(before, after, folder / "out", 500)
    return compare(options, command="kvfix compare before after").report


@pytest.fixture(scope="session")
def index_page(report_page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a real run and of two made-up ones with other tasks and an adapter."""
    from fake_runs import fake_run, save_run

    from kvfix.report.index import write_index

    folder = tmp_path_factory.mktemp("index")
    plain, adapted = fake_run(), fake_run()
    adapted["model"]["adapter"] = "runs/repair/adapter"
    for row in (*adapted["results"], *adapted["findings"]):
        row["value"] += 0.05
    runs = [save_run(folder / name, run) for name, run in (("plain", plain), ("fixed", adapted))]
    return write_index([report_page.parent, *runs], folder)
