"""The `evaluate.Metric` faces: equal to the pure functions, however the examples come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch

from kvfix.eval import metrics
from kvfix.eval.metrics import faces


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def masks(seed: int, *, top: int = 2) -> list[np.ndarray]:
    """Four label maps of two sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, top, size) for size in ((4, 5), (6, 3), (4, 5), (6, 3))]


MINE, TRUE = masks(0), masks(1)
OVERLAPS = [metrics.overlap(p, t) for p, t in zip(MINE, TRUE, strict=True)]
REFERRING = metrics.referring(OVERLAPS)
BINARY = {
    "iou": metrics.mean_iou(OVERLAPS),
    "pooled_iou": metrics.pooled_iou(OVERLAPS),
    "fb_iou": metrics.fb_iou(OVERLAPS),
}


def test_it_is_a_metric_of_the_library(tmp_path: Path) -> None:
    metric = faces.BinaryIou(cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric) and isinstance(metric.info, evaluate.MetricInfo)
    assert metric.name == "binary_iou" and set(metric.features) == {"predictions", "references"}
    assert "juhongm999/hsnet" in metric.citation and "Foreground IoU" in metric.description


def test_one_call_batches_and_single_examples_agree(tmp_path: Path) -> None:
    metric = faces.BinaryIou(cache_dir=str(tmp_path))
    assert metric.compute(predictions=MINE, references=TRUE) == BINARY
    metric.add_batch(predictions=MINE[:1], references=TRUE[:1])
    stacked = torch.tensor(np.stack(MINE[2:3])), np.stack(TRUE[2:3])
    metric.add_batch(predictions=stacked[0], references=stacked[1])
    metric.add(prediction=MINE[1].tolist(), reference=torch.tensor(TRUE[1]))
    metric.add(prediction=MINE[3].astype(bool), reference=TRUE[3].astype(np.uint8))
    assert len(metric) == 4
    found = metric.compute()
    assert found == pytest.approx(BINARY, abs=1e-15)


def test_a_metric_starts_anew_after_compute_and_keeps_no_mask(tmp_path: Path) -> None:
    metric = faces.BinaryIou(cache_dir=str(tmp_path))
    big = np.ones((400, 500), np.uint8)
    metric.add_batch(predictions=[big] * 8, references=[big] * 8)
    metric.writer.write_examples_on_file()
    kept = sum(f.stat().st_size for f in tmp_path.rglob("*.arrow"))
    assert metric.compute()["iou"] == 1.0 and kept < 8 * big.size / 10
    metric.add_batch(predictions=[0 * big], references=[big])
    assert metric.compute()["iou"] == 0.0


def test_metrics_combine(tmp_path: Path) -> None:
    both = [faces.BinaryIou(cache_dir=str(tmp_path)), faces.ReferringIou(cache_dir=str(tmp_path))]
    together = evaluate.combine(both)
    for part in (slice(0, 3), slice(3, 4)):
        together.add_batch(predictions=MINE[part], references=TRUE[part])
    found = together.compute()
    assert found["ciou"] == REFERRING.ciou and found["iou"] == BINARY["iou"]
    assert found["P@0.5"] == REFERRING.precision[0.5]


def test_it_serves_as_compute_metrics(tmp_path: Path) -> None:
    from transformers import EvalPrediction

    metric = faces.BinaryIou(cache_dir=str(tmp_path))
    logits = np.stack([np.where(m, 2.0, -1.0) for m in (MINE[0], MINE[2])])
    batch = EvalPrediction(predictions=logits, label_ids=np.stack((TRUE[0], TRUE[2])))
    found = metric.compute(predictions=batch.predictions > 0, references=batch.label_ids)
    assert found["pooled_iou"] == metrics.pooled_iou([OVERLAPS[0], OVERLAPS[2]])


def cases() -> list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Face, inputs, options, and what the pure functions say."""
    pascal = metrics.pascal5i(OVERLAPS, [1, 2, 7, 7])
    groups = metrics.cosegmentation({"a": OVERLAPS[:1], "b": OVERLAPS[1:]})
    ids, true_ids = masks(2, top=5), masks(3, top=4)
    true_ids[0][0, 0] = metrics.IGNORE
    counts = [metrics.class_counts(p, t, 4) for p, t in zip(ids, true_ids, strict=True)]
    near = [[[3.0, 4.0], [5.0001, 0.0], [0.0, -5.0]], [[9.0, 9.0]]]
    points = [[[0.0, 0.0]] * 3, [[0.0, 0.0]]]
    hits = [
        metrics.pck_hits(np.array(p), np.array(t), 50, 0.1)
        for p, t in zip(near, points, strict=True)
    ]
    clip = np.zeros((5, 8, 8), np.uint8)
    clip[:, 2:5, 2:5], clip[:, 6:, 6:] = 1, 2
    moved = np.roll(clip, 1, axis=2)
    objects = metrics.davis_objects(moved, clip)
    j, f = (float(np.mean([getattr(o, k) for o in objects])) for k in ("j_mean", "f_mean"))
    return [
        ("ReferringIou", {}, {}, {"ciou": REFERRING.ciou, "miou": REFERRING.miou}),
        (
            "Pascal5iIou",
            {"classes": [1, 2, 7, 7]},
            {},
            {"miou": pascal.miou, "fb_iou": pascal.fb_iou, "miou_fold1": pascal.folds[1].miou},
        ),
        (
            "Cosegmentation",
            {"groups": ["a", "b", "b", "b"]},
            {},
            {"jaccard": groups.jaccard, "precision": groups.precision},
        ),
        (
            "ImageNetSIou",
            {"predictions": ids, "references": true_ids, "config_name": "4"},
            {},
            {"miou": metrics.class_iou(counts).miou, "absent_classes": 1},
        ),
        (
            "Pck",
            {"predictions": near, "references": points, "sizes": [50, 50]},
            {"alpha": 0.1},
            {"pck_per_image": metrics.pck_per_image(hits), "pck_per_point": 2 / 4},
        ),
        (
            "DavisJf",
            {"predictions": [moved], "references": [clip]},
            {},
            {"j_mean": j, "f_mean": f, "j_and_f": (j + f) / 2},
        ),
        (
            "ChoiceAccuracy",
            {
                "predictions": ["(A)", "B", "no idea", "(C)"],
                "references": ["(A)", "(B)", "(A)", "(B)"],
                "tasks": ["x", "y", "y", "y"],
            },
            {},
            {"macro": (1 + 1 / 3) / 2, "micro": 2 / 4, "unparsed_rate": 1 / 4},
        ),
    ]


@pytest.mark.parametrize(("name", "inputs", "options", "expected"), cases())
def test_every_face_equals_the_pure_function(
    name: str,
    inputs: dict[str, Any],
    options: dict[str, Any],
    expected: dict[str, Any],
    tmp_path: Path,
) -> None:
    given = {"predictions": MINE, "references": TRUE} | inputs
    config = {k: given.pop(k) for k in ("config_name",) if k in given}
    metric = getattr(faces, name)(cache_dir=str(tmp_path), **config)
    whole = metric.compute(**given, **options)
    assert {k: whole[k] for k in expected} == pytest.approx(expected, abs=1e-15)
    for i in range(len(given["predictions"])):
        metric.add_batch(**{k: column[i : i + 1] for k, column in given.items()})
    assert metric.compute(**options) == whole


def test_the_rule_for_nothing_against_nothing_is_chosen_at_the_end(tmp_path: Path) -> None:
    metric = faces.ReferringIou(cache_dir=str(tmp_path))
    nothing, white = np.zeros((2, 2)), np.full((2, 2), 255)
    for empty, miou in (("lisa", 1.0), ("lavt", 0.5)):
        metric.add_batch(predictions=[nothing, white], references=[nothing, white])
        assert metric.compute(empty=empty)["miou"] == miou
    metric.add_batch(predictions=[nothing], references=[nothing])
    with pytest.raises(ValueError, match="expected lisa or lavt, found 'none'"):
        metric.compute(empty="none")


def test_answers_are_read_by_the_chosen_profile(tmp_path: Path) -> None:
    given = {"predictions": ["The answer is B"], "references": ["(B)"], "tasks": ["x"]}
    for profile, right in (("kvfix", 1.0), ("lmms-eval", 1.0), ("lmms-eval@before-1435", 0.0)):
        metric = faces.ChoiceAccuracy(profile, cache_dir=str(tmp_path))
        assert metric.compute(**given)["micro"] == right


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    metric = faces.BinaryIou(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="found 4 predictions, 1 references"):
        metric.add_batch(predictions=MINE, references=TRUE[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        metric.add(prediction=MINE[0], reference=TRUE[1])
    with pytest.raises(ValueError, match="found no classes"):
        faces.Pascal5iIou(cache_dir=str(tmp_path)).add_batch(predictions=MINE, references=TRUE)
