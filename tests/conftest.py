"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kvfix.mlm.load import Mlm

# CI: the same examples every time, few enough that all fuzzing takes two minutes.
# `HYPOTHESIS_PROFILE=deep pytest -k fuzz` looks for new ones.
_COMMON = {
    "deadline": 10_000,  # milliseconds: a hang, also on a machine that does other work
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile(
    "ci", max_examples=100, derandomize=True, database=None, print_blob=True, **_COMMON
)
settings.register_profile("deep", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: run what holds a model on a GPU; cpu: run the rest, whatever the machine has",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs before torch looks for one, also from the commands that tests start."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        config.option.markexpr = config.option.markexpr.replace("not gpu and ", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU only the tests that are made for one."""
    if config.getoption("--device") == "cuda":
        made = [i for i in items if i.get_closest_marker("gpu") or "device" in i.fixturenames]
        config.hook.pytest_deselected(items=[i for i in items if i not in made])
        items[:] = made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed goes from process to process as UTF-8, which has no lone surrogates."""
    report = yield
    report.sections = [(name, _utf8(text)) for name, text in report.sections]
    return report


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where a test that is made for a GPU puts its model: `cuda`, or `pretend` without one."""
    return "cuda" if request.config.getoption("--device") == "cuda" else "pretend"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint by its name in `tiny.BUILDERS`, built once."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = tiny.build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return get


@pytest.fixture
def load(checkpoint: Callable[[str], Path]) -> Callable[..., Mlm]:
    """Load a tiny checkpoint by its name."""
    from kvfix.mlm.load import load_mlm

    return lambda name, **options: load_mlm(str(checkpoint(name)), **options)
