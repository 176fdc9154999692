"""The benchmarks' figures from the rows of a task, of a model's sites and of predictions alike.

A pooled ratio divides the sums over units once, and is recomputed in each resample of the
bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvfix.eval.metrics.masks import PRECISION_AT
from kvfix.eval.results import Table, site_result
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap, pooled_ratio_bootstrap
from kvfix.runs.rows import Result, ScoreRow

if TYPE_CHECKING:
    from kvfix.eval.suite import TaskRun


class Columns(NamedTuple):
    """The rows of a task, read field by field, and the seed of the bootstrap."""

    rows: Iterable[ScoreRow]
    seed: int = 0

    def table(self, field: str = "score") -> Table:
        """One number for each unit and site."""
        return Table(self.rows, field)

    def labels(self, field: str) -> list[Hashable]:
        """One label for each unit, in the order of `table`."""
        return list({row.id: row.number(field) for row in self.rows}.values())


def mean(columns: Columns, field: str = "score") -> Interval:
    """The mean over units."""
    table = columns.table(field)
    return clustered_bootstrap(table.score_NS, table.clusters, seed=columns.seed)


def ratio(
    columns: Columns,
    part: str,
    whole: str,
    *,
    strata: Sequence[Hashable] | None = None,
    n_strata: int | None = None,
) -> Interval:
    """The sum of one field over the sum of another; see `pooled_ratio_bootstrap` for `strata`."""
    above, below = columns.table(part), columns.table(whole)
    return pooled_ratio_bootstrap(
        above.score_NS,
        below.score_NS,
        above.clusters,
        strata=strata,
        n_strata=n_strata,
        seed=columns.seed,
    )


def class_iou(columns: Columns, n_classes: int | None = None) -> Interval:
    """Foreground IoU pooled within each class, then averaged over classes.

    The mean is over `n_classes`, of which those without a unit count 0, as HSNet has it; if that is
    None, over the classes that occur.
    """
    labels = columns.labels("category")
    return ratio(columns, "inter", "union", strata=labels, n_strata=n_classes)


def foreground_background_iou(columns: Columns, by: str | None = None) -> Interval:
    """FB-IoU: the mean of the foreground's and the background's IoU, each pooled over all units.

    With `by`, the name of a field, both are pooled within each of its values and then averaged.
    """
    front = [columns.table(field) for field in ("inter", "union")]
    back = [columns.table(field) for field in ("inter_background", "union_background")]
    part, whole = (
        np.concatenate((f.score_NS, b.score_NS)) for f, b in zip(front, back, strict=True)
    )
    table = front[0]
    groups = [None] * len(table.ids) if by is None else columns.labels(by)
    strata = [(group, side) for side in ("foreground", "background") for group in groups]
    got = pooled_ratio_bootstrap(
        *(part, whole, [*table.clusters] * 2),
        strata=strata,
        n_strata=len(set(strata)),
        seed=columns.seed,
    )
    return got._replace(n_S=(~np.isnan(table.score_NS)).sum(0))  # a unit counts once, not twice


def precision_at(columns: Columns, bound: float) -> Interval:
    """P@bound: the share of units whose IoU is at least `bound`."""
    table = columns.table()
    over_NS = np.where(np.isnan(table.score_NS), np.nan, table.score_NS >= bound)
    return clustered_bootstrap(over_NS, table.clusters, seed=columns.seed)


pooled_iou = partial(ratio, part="inter", whole="union")  # cIoU, also called oIoU
per_point = partial(ratio, part="correct", whole="points")  # PCK

POOLED: dict[str, dict[str, Callable[[Columns], Interval]]] = {
    "foreground_segmentation": {"mIoU": class_iou, "FB-IoU": foreground_background_iou},
    "cosegmentation": {"precision": partial(mean, field="precision")},
    "semantic_segmentation": {"mIoU": class_iou},
    "referring_segmentation": {
        "cIoU": pooled_iou,
        **{f"P@{bound}": partial(precision_at, bound=bound) for bound in PRECISION_AT},
    },
    "semantic_correspondence": {"PCK@0.1 per point": per_point},
}


def pooled_results(run: TaskRun, *, seed: int = 0) -> list[Result]:
    """The further results of a task, one for each metric and site; none where it has no such."""
    metrics = POOLED.get(run.units.task, {})
    if not metrics or not run.rows:
        return []
    columns = Columns(run.rows, seed)
    sites = columns.table().sites
    return [
        site_result(run.units, site, metric, interval, s)
        for metric, figure in metrics.items()
        for interval in (figure(columns),)
        for s, site in enumerate(sites)
    ]
