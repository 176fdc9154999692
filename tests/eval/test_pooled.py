"""Pooled figures against sums done by hand and against the metrics' own functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_source import FakeSource

from kvfix.data.scenes.units import scene_units
from kvfix.data.units import UnitSet
from kvfix.eval.metrics import Overlap, class_miou, fb_iou
from kvfix.eval.pooled import POOLED, PRECISION_AT, pooled_results
from kvfix.eval.suite import TaskRun, run_task
from kvfix.runs.rows import ProbeRow

# category, intersection, union, the background's intersection and union; 100 valid pixels each
UNITS = [
    ("cat", Overlap(10, 40, 60, 90)),
    ("cat", Overlap(30, 40, 60, 70)),
    ("dog", Overlap(5, 50, 50, 95)),
    ("dog", Overlap(0, 0, 100, 100)),
]


def rows_of(task: str) -> list[ProbeRow]:
    rows = []
    for i, (category, o) in enumerate(UNITS):
        for site, layer, less in (("vision", None, 0), ("value", 3, 5)):
            inter = max(o.inter - less, 0)
            rows.append(
                ProbeRow(
                    *(f"u{i}", f"c{i}", task, "scenes"),
                    *(site, layer, None, "IoU"),
                    score=inter / o.union if o.union else 1.0,
                    category=category,
                    more={
                        "inter": inter,
                        "union": o.union,
                        "inter_background": o.inter_background,
                        "union_background": o.union_background,
                    },
                )
            )
    return rows


def results_of(task: str) -> dict[tuple[str, str], dict]:
    run = TaskRun(scene_units(task, n=len(UNITS)), rows_of(task), [])
    return {(r["metric"], r["site"]): r for r in pooled_results(run)}


def test_class_iou_pools_within_a_class_and_averages_over_classes() -> None:
    row = results_of("foreground_segmentation")["mIoU", "vision"]
    assert row["value"] == pytest.approx(((10 + 30) / (40 + 40) + 5 / 50) / 2)
    overlaps, names = [o for _, o in UNITS], [c for c, _ in UNITS]
    codes = [sorted(set(names)).index(c) for c in names]
    assert row["value"] == pytest.approx(class_miou(overlaps, codes, of=[0, 1]))
    low, high = row["ci"]
    assert low <= row["value"] <= high


def test_both_sides_are_pooled_for_fb_iou() -> None:
    row = results_of("foreground_segmentation")["FB-IoU", "vision"]
    assert row["value"] == pytest.approx(fb_iou([o for _, o in UNITS]))
    assert row["n"] == len(UNITS) and row["clusters"] == len(UNITS)


def test_ciou_divides_once() -> None:
    found = results_of("referring_segmentation")
    assert found["cIoU", "vision"]["value"] == pytest.approx(45 / 130)
    assert found["cIoU", "value"]["value"] == pytest.approx((5 + 25 + 0) / 130)
    assert found["cIoU", "value"]["layer"] == 3


def test_a_score_at_the_bound_counts() -> None:
    rows = [
        replace(r, score=s) for r, s in zip(rows_of("x")[::2], (0.5, 0.9, 0.1, 0.7), strict=True)
    ]
    run = TaskRun(scene_units("referring_segmentation", n=4), rows, [])
    found = {r["metric"]: r["value"] for r in pooled_results(run)}
    assert [found[f"P@{b}"] for b in PRECISION_AT] == [0.75, 0.5, 0.5, 0.25, 0.25]


def test_a_task_without_further_figures_has_none() -> None:
    assert "temporal_correspondence" not in POOLED
    run = TaskRun(scene_units("temporal_correspondence", n=4), rows_of("x"), [])
    assert pooled_results(run) == []


@pytest.mark.parametrize("task", POOLED)
def test_the_suite_writes_what_pooling_reads(task: str, tmp_path) -> None:
    units: UnitSet = scene_units(task, n=2)
    results = pooled_results(run_task(units, FakeSource(), tmp_path))
    assert {r["metric"] for r in results} == set(POOLED[task])
    assert all(0 <= r["value"] <= 1 and r["n"] == 2 and np.isfinite(r["ci"]).all() for r in results)
