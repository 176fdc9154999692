"""`--report-to`: scores and the figure in TensorBoard, and one line where a package is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import call
from fake_runs import fake_run, save_run

from kvfix.report.export import trackers
from kvfix.report.export.trackers import TRACKERS, log_run, scores
from kvfix.report.html import write_report


def test_scores_are_curves_over_layers() -> None:
    run = fake_run(heads=True)
    by_name: dict[str, list[int]] = {}
    for item in scores(run):
        by_name.setdefault(item.name, []).append(item.layer)
    assert by_name["cosegmentation/scenes/Jaccard/value"] == list(range(8))  # no head among them
    assert by_name["cosegmentation/scenes/Jaccard/value/random_weights"] == list(range(8))
    assert by_name["cosegmentation/scenes/Jaccard/vision"] == [0]
    answer = {"task": "mcq", "subtask": "Jigsaw", "dataset": "blink", "metric": "accuracy"}
    answer |= {"scoring": "generation", "site": None, "value": 0.5}
    assert list(scores({"results": [answer, answer | {"value": None}]})) == [
        ("mcq/Jigsaw/blink/accuracy/generation", 0, 0.5)
    ]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_is_one_line_before_anything_runs(
    tracker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for command in ("diagnose", "eval"):
        ended = call(command, "--report-to", tracker, "--out", tmp_path / "run")
        assert ended.code == 1 and ended.error.endswith(f"pip install {tracker}")
    ended = call("train", "surfacing", f"report_to={tracker}", f"out={tmp_path / 'run'}")
    assert ended.code == 1 and ended.error.endswith(f"pip install {tracker}")
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_scores_verdict_and_figure(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fake_run()
    folder = save_run(tmp_path / "run", run)
    write_report(folder)
    log_run(run, folder, "tensorboard")
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    curve = found.Scalars("cosegmentation/scenes/Jaccard/value")
    planted = [
        row["value"]
        for row in run["results"]
        if (row["task"], row["site"], row["control"]) == ("cosegmentation", "value", None)
    ]
    assert [event.step for event in curve] == list(range(8))
    assert [event.value for event in curve] == pytest.approx(planted)
    assert found.Images("score against stage")[0].width > 500
    assert "verdict/text_summary" in found.Tags()["tensors"]


def test_wandb_gets_scores_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fake_run()
    folder = save_run(tmp_path / "run", run)
    write_report(folder)
    log_run(run, folder, "wandb")
    [written] = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 1000 and "wandb" in sys.modules
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/*.png"))
