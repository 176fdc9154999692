"""The further figures that a benchmark reports beside a probe's mean over units.

Pooled ratios (sums over units divided once) and shares of units over a bound, each with the
interval of a bootstrap that recomputes it in every resample.

Shapes: N units, S sites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kvfix.eval.results import Result, Table, site_result
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap, pooled_ratio_bootstrap
from kvfix.eval.suite import TaskRun

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)  # of RefCOCO; the bound itself counts


class _Columns(NamedTuple):
    """The rows of a task, read field by field from disk."""

    run: TaskRun
    seed: int

    def table(self, field: str) -> Table:
        """One number a unit and site under the name of the score."""
        nan = float("nan")
        return Table({**r, "score": r[field], "chance": nan, "ceiling": nan} for r in self.run.rows)

    def categories(self) -> list[str]:
        """One category a unit, in the order of `table`."""
        return list({r["id"]: r["category"] for r in self.run.rows}.values())


def class_iou(columns: _Columns) -> Interval:
    """Foreground IoU pooled within each class, then averaged over the classes that occur.

    On one fold of Pascal-5i this is HSNet's mIoU, on all four the mean over folds, as long as
    every class has an episode (an absent class counts 0 there, and is left out here).
    """
    part, whole = columns.table("inter"), columns.table("union")
    return pooled_ratio_bootstrap(
        part.score_NS,
        whole.score_NS,
        part.clusters,
        strata=columns.categories(),
        seed=columns.seed,
    )


def foreground_background_iou(columns: _Columns) -> Interval:
    """FB-IoU: the mean of the foreground's and the background's IoU, each pooled over all units."""
    front = [columns.table(f) for f in ("inter", "union")]
    back = [columns.table(f) for f in ("inter_background", "union_background")]
    part, whole = (
        np.concatenate((f.score_NS, b.score_NS)) for f, b in zip(front, back, strict=True)
    )
    table = front[0]
    n = len(table.ids)
    sides = ["foreground"] * n + ["background"] * n
    got = pooled_ratio_bootstrap(
        part, whole, [*table.clusters] * 2, strata=sides, seed=columns.seed
    )
    return got._replace(n_S=(~np.isnan(table.score_NS)).sum(0))  # a unit counts once, not twice


def pooled_iou(columns: _Columns) -> Interval:
    """CIoU (also oIoU): sum of intersections over sum of unions, all units together."""
    part, whole = columns.table("inter"), columns.table("union")
    return pooled_ratio_bootstrap(part.score_NS, whole.score_NS, part.clusters, seed=columns.seed)


def precision_at(bound: float) -> Callable[[_Columns], Interval]:
    """P@bound: the share of units whose IoU is at least `bound`."""

    def share(columns: _Columns) -> Interval:
        table = columns.table("score")
        over_NS = np.where(np.isnan(table.score_NS), np.nan, table.score_NS >= bound)
        return clustered_bootstrap(over_NS, table.clusters, seed=columns.seed)

    return share


def per_point(columns: _Columns) -> Interval:
    """PCK per point: correct keypoints over all keypoints."""
    part, whole = columns.table("correct"), columns.table("points")
    return pooled_ratio_bootstrap(part.score_NS, whole.score_NS, part.clusters, seed=columns.seed)


def pixel_precision(columns: _Columns) -> Interval:
    """MSRC's P: share of right pixels over foreground and background, mean over groups."""
    table = columns.table("precision")
    return clustered_bootstrap(table.score_NS, table.clusters, seed=columns.seed)


POOLED: dict[str, dict[str, Callable[[_Columns], Interval]]] = {
    "foreground_segmentation": {"mIoU": class_iou, "FB-IoU": foreground_background_iou},
    "cosegmentation": {"precision": pixel_precision},
    "semantic_segmentation": {"mIoU": class_iou},
    "referring_segmentation": {
        "cIoU": pooled_iou,
        **{f"P@{bound}": precision_at(bound) for bound in PRECISION_AT},
    },
    "semantic_correspondence": {"PCK@0.1 per point": per_point},
}


def pooled_results(run: TaskRun, *, seed: int = 0) -> list[Result]:
    """The further results of a task, one a metric and site; none for a task without such figures.

    Args:
        run: a scored task.
        seed: of the bootstrap.
    """
    metrics = POOLED.get(run.units.task, {})
    if not metrics or not run.rows:
        return []
    columns = _Columns(run, seed)
    sites = columns.table("score").sites
    return [
        site_result(run.units, site, metric, interval, s)
        for metric, figure in metrics.items()
        for interval in (figure(columns),)
        for s, site in enumerate(sites)
    ]
