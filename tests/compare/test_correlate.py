"""`kvfix compare --correlate`: a planted order of runs is found; what has no order is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import call

from kvfix.compare.correlate import ALL, CorrelateOptions, correlate

GAINS = (-0.2, -0.1, 0.0, 0.05, 0.1, 0.3)
RISING = (0.3, 0.4, 0.5, 0.55, 0.6, 0.7)
HOSTILE = '<script>alert("x")</script>[a](http://x) |`x`'


def result(task: str, site: str | None, value: float, **more: Any) -> dict[str, Any]:
    blank = {"dataset": "scenes", "layer": None, "head": None, "control": None, "metric": "IoU"}
    return {**blank, "task": task, "site": site, "value": value, **more}


def probe(task: str, metric: str, gain: float) -> list[dict[str, Any]]:
    """A projector at 0.4, the best value layer at 0.4 + gain, the last in the opposite order."""
    layers = (0.1, 0.4 + gain, 0.05 - gain / 10)
    named = {"metric": metric}
    return [
        result(task, "vision", 0.5, **named),
        result(task, "projector", 0.4, **named),
        *(result(task, "value", v, layer=i, **named) for i, v in enumerate(layers)),
        result(task, "value", 0.9, layer=1, control="random_weights", **named),
        result(task, "value", 0.9, layer=1, head=0, **named),
    ]


def save(folder: Path, gain: float, accuracy: float, **changed: Any) -> Path:
    answers = [
        result("mcq", None, v, metric="accuracy_macro", scoring=how, subtask=None)
        for how, v in (("generation", accuracy), ("logprob", 1 - accuracy))
    ]
    record = {
        "kvfix": "0.1.0",
        "kind": "diagnose",
        "command": f"kvfix diagnose --model {folder.name}",
        "complete": True,
        "fingerprint": {"weights": folder.name, "adapter": None, "protocol": 1},
        "model": {"id": folder.name},
        "data": [{"dataset": "scenes", "task": t, "n": 9, "sha256": "d"} for t in ("mcq", "pair")],
        "results": [
            *probe("semantic_correspondence", "PCK@0.1", gain),
            *probe("foreground_segmentation", "IoU", gain / 2),
            result("referring_segmentation", "value", 0.2, layer=0),  # by text: no projector
            *answers,
        ],
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | changed))
    return folder


def folders(tmp_path: Path, accuracies: Sequence[float] = RISING, **changed: Any) -> list[Path]:
    return [
        save(tmp_path / f"m{i}", gain, accuracy, **changed)
        for i, (gain, accuracy) in enumerate(zip(GAINS, accuracies, strict=False))
    ]


def found(tmp_path: Path, runs: Sequence[Path]) -> dict[str, Any]:
    return correlate(
        CorrelateOptions(tuple(runs), tmp_path / "out"), command="kvfix compare"
    ).record


def row(record: dict[str, Any], place: str, **named: Any) -> dict[str, Any]:
    wanted = {"task": "semantic_correspondence", "scoring": "generation", "layer": None} | named
    [one] = [
        r
        for r in record["correlations"]
        if r["place"] == place and all(r[k] == v for k, v in wanted.items())
    ]
    return one


def test_a_planted_order_is_found_in_its_direction(tmp_path: Path) -> None:
    record = found(tmp_path, folders(tmp_path))
    best = row(record, "best")
    assert best["rho"] == 1 and best["p"] == pytest.approx(2 / 720) and best["n"] == 6
    assert best["gains"] == pytest.approx(GAINS) and best["accuracies"] == pytest.approx(RISING)
    assert best["ci"][0] > 0.3 and best["ci"][1] == 1
    # 2 probes and their mean, 2 places, 2 ways of answering: Holm multiplies by 12.
    assert best["p_holm"] == pytest.approx(12 * 2 / 720) and best["clear"]
    assert row(record, "best", scoring="logprob")["rho"] == -1
    assert row(record, "last")["rho"] == -1  # the last layer was planted the other way round
    mean = row(record, "best", task=ALL)
    assert mean["gains"] == pytest.approx([0.75 * g for g in GAINS])
    [said] = [
        f["text"]
        for f in record["findings"]
        if f["id"] == "correlate.best.generation" and f["task"] == "semantic_correspondence"
    ]
    assert "rho +1.00 [" in said and "n = 6 runs" in said and "not clear" not in said


def test_every_layer_has_a_row_where_all_runs_have_one_depth(tmp_path: Path) -> None:
    record = found(tmp_path, folders(tmp_path))
    assert [row(record, "layer", layer=i)["rho"] for i in range(3)] == [None, 1, -1]
    assert not any(f["id"].startswith("correlate.layer") for f in record["findings"])


def test_without_a_relation_none_is_claimed(tmp_path: Path) -> None:
    record = found(tmp_path, folders(tmp_path, (0.5, 0.3, 0.7, 0.4, 0.6, 0.35)))
    best = row(record, "best")
    assert abs(best["rho"]) < 0.5 and best["p"] > 0.2 and not best["clear"]
    assert best["ci"][0] < 0 < best["ci"][1]


def test_four_runs_are_too_few_to_tell_and_this_is_said(tmp_path: Path) -> None:
    record = found(tmp_path, folders(tmp_path)[:4])
    best = row(record, "best")
    assert best["rho"] == 1 and best["ci"] is best["p"] is best["p_holm"] is None
    assert not best["clear"] and any("4 runs are too few" in n for n in record["notes"])
    assert "too few runs to tell (at least 5)" in record["findings"][0]["text"]


def test_what_some_runs_lack_is_left_out_and_said(tmp_path: Path) -> None:
    runs = folders(tmp_path)
    poor = json.loads((runs[0] / "run.json").read_text())
    poor["results"] = [r for r in poor["results"] if r["task"] != "foreground_segmentation"]
    (runs[0] / "run.json").write_text(json.dumps(poor))
    record = found(tmp_path, runs)
    assert {r["task"] for r in record["correlations"]} == {"semantic_correspondence"}
    assert any("foreground_segmentation" in n and "not every run" in n for n in record["notes"])
    assert any("referring segmentation: no score at the projector" in n for n in record["notes"])


def test_runs_that_may_not_be_ranked_are_refused(tmp_path: Path) -> None:
    runs = folders(tmp_path)
    again = save(tmp_path / "again", 0.1, 0.4, fingerprint={"weights": "m0", "adapter": None})
    with pytest.raises(ValueError, match="one model is one point"):
        found(tmp_path, [*runs, again])
    fewer = save(
        tmp_path / "fewer",
        0.1,
        0.4,
        data=[{"dataset": "scenes", "task": "mcq", "n": 4, "sha256": "d"}],
    )
    with pytest.raises(ValueError, match=r"scenes/mcq: expected the same units .* n = 4"):
        found(tmp_path, [*runs, fewer])
    other = save(tmp_path / "other", 0.1, 0.4, fingerprint={"weights": "o", "protocol": 2})
    with pytest.raises(ValueError, match="protocol: expected one rule"):
        found(tmp_path, [*runs, other])
    mute = save(tmp_path / "mute", 0.1, 0.4, results=[])
    with pytest.raises(ValueError, match=r"that all runs share, found none in .*mute"):
        found(tmp_path, [*runs, mute])
    half = save(tmp_path / "half", 0.1, 0.4, complete=False)
    with pytest.raises(ValueError, match="interrupted"):
        found(tmp_path, [*runs, half])


def test_the_command(tmp_path: Path) -> None:
    runs, out = folders(tmp_path), tmp_path / "out"
    done = call("compare", "--correlate", *runs, "--out", out, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record == json.loads((out / "correlate.json").read_text())
    assert "+1.00" in done.err and "all probes" in done.err
    assert max(len(line.rstrip()) for line in done.err.splitlines() if "note" not in line) <= 100
    for name in ("correlate.html", "correlate.md"):
        page = (out / name).read_text()
        assert all(f"m{i}" in page for i in range(6)) and "+1.00" in page and "–1" not in page
    assert call("compare", "--correlate", runs[0]).code == 2
    assert call("compare", *runs).code == 2
    missing = call("compare", "--correlate", runs[0], tmp_path / "none", "--out", out)
    assert missing.code == 1 and "expected a run folder" in missing.error


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    runs = folders(tmp_path, model={"id": HOSTILE}, command=HOSTILE)
    correlate(CorrelateOptions(tuple(runs), tmp_path / "out"), command=HOSTILE)
    for name in ("correlate.html", "correlate.md"):
        page = (tmp_path / "out" / name).read_text()
        assert "<script" not in page and "alert(" in page
