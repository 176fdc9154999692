"""`kvfix report`: reports written again without a model, and an index of many runs."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from commands import ENV, call
from fake_runs import save_run

ROW = {"task": "cosegmentation", "dataset": "scenes", "site": "value", "head": None, "n": 9}
MEASURED = {"metric": "Jaccard", "ci": [0.1, 0.4], "split": "test", "control": None}


def save(folder: Path, best: float, model: str = "org/model") -> Path:
    """A run with two value layers, the second one best."""
    rows = [{**ROW, **MEASURED, "layer": k, "value": v} for k, v in enumerate((0.1, best))]
    run = {"kind": "eval", "schema": 1, "model": {"id": model}, "results": rows, "complete": True}
    return save_run(folder, run)


def test_a_report_is_written_again_from_its_folder_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 0.3)
    ended = call("report", folder)
    assert ended.code == 0, ended.err
    assert "org/model" in (folder / "report.html").read_text()
    assert f"Report: {folder}/report.html" in ended.err


def test_several_runs_get_an_index_with_their_scores(tmp_path: Path) -> None:
    runs = [save(tmp_path / "a", 0.3), save(tmp_path / "b", 0.7, "<script>x</script>")]
    ended = call("report", *runs, "--out", tmp_path / "all")
    assert ended.code == 0, ended.err
    page = (tmp_path / "all" / "index.html").read_text()
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["../a/report.html", "../b/report.html"]
    assert all((tmp_path / "all" / link).is_file() for link in links)
    assert "0.300" in page and "0.700" in page and "cosegmentation<small>Jaccard, scenes" in page
    assert page.count("<script") == 1


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    ended = call("report", tmp_path / "nothing")
    assert ended.code == 1 and "run.json" in ended.error
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("runs", [1, 2])
def test_a_report_is_served_on_this_machine_alone(runs: int, tmp_path: Path) -> None:
    folders = [save(tmp_path / f"run {k}", 0.3) for k in range(runs)]
    words = [sys.executable, "-m", "kvfix", "report", *folders, "--out", tmp_path, "--serve", "0"]
    with subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True, env=ENV) as server:
        assert server.stderr is not None
        try:
            lines = iter(server.stderr.readline, "")
            line = next(text for text in lines if "http://" in text)
            address = re.search(r"http://127\.0\.0\.1:\d+/[^,]*", line)
            assert address is not None, line
            with urllib.request.urlopen(address[0].replace(" ", "%20")) as answer:
                page = answer.read().decode()
            assert ("org/model" in page) and answer.status == 200
        finally:
            server.terminate()
