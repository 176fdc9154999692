"""Rows on disk -> results: a mean with its interval for each task, dataset, control and site."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvfix.data.units import UnitSet
from kvfix.eval.site import Site
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap
from kvfix.runs.rows import Result, ScoreRow

if TYPE_CHECKING:  # the suite imports every probe, which `kvfix score` needs none of
    from kvfix.eval.suite import TaskRun


class Table:
    """The scores of one task as an array: units x sites."""

    def __init__(self, rows: Iterable[ScoreRow], field: str = "score"):
        """Pivot one number of a task's rows; a unit without it at a site gets NaN there."""
        unit_of: dict[str, int] = {}
        site_of: dict[Site, int] = {}
        self.clusters: list[str] = []
        self.metric = ""
        at, numbers = array("q"), array("d")
        for row in rows:
            if row.id not in unit_of:
                unit_of[row.id] = len(unit_of)
                self.clusters.append(row.cluster)
                self.metric = row.metric
            site = site_of.setdefault(Site(row.site, row.layer, row.head), len(site_of))
            at.extend((unit_of[row.id], site))
            bounds = (math.nan if bound is None else bound for bound in (row.chance, row.ceiling))
            numbers.extend((row.number(field), *bounds))
        self.ids, self.sites = list(unit_of), list(site_of)
        grids = np.full((3, len(unit_of), len(site_of)), np.nan)
        where = np.array(at).reshape(-1, 2)
        grids[:, where[:, 0], where[:, 1]] = np.array(numbers).reshape(-1, 3).T
        self.score_NS, self.chance_NS, self.ceiling_NS = grids

    def columns(self, kind: str, *, head: bool = False) -> list[int]:
        """Columns of a site kind, in layer order; with `head`, those of single KV heads."""
        found = [
            (s.layer if s.layer is not None else -1, s.head or 0, i)
            for i, s in enumerate(self.sites)
            if s.site == kind and (s.head is not None) == head
        ]
        return [i for *_, i in sorted(found)]

    def scores_of(self, ids: Sequence[str]) -> np.ndarray:
        """The scores of these units, (units, sites); NaN for a unit that is not in the table."""
        row_of = {unit: n for n, unit in enumerate(self.ids)}
        nothing = np.full((1, len(self.sites)), np.nan)
        padded = np.concatenate((self.score_NS, nothing))
        return padded[[row_of.get(unit, len(self.ids)) for unit in ids]]


def summarise(run: TaskRun, *, control: str | None = None, seed: int = 0) -> list[Result]:
    """One flat result for each site of a task."""
    table = Table(run.rows)
    if not table.ids:
        return []
    interval = clustered_bootstrap(table.score_NS, table.clusters, seed=seed)
    return [
        site_result(
            *(run.units, site, table.metric, interval, s), control=control, subtask=run.subtask
        )
        | {
            "chance": float(np.nanmean(table.chance_NS[:, s])),
            "ceiling": float(np.nanmean(table.ceiling_NS[:, s])),
        }
        for s, site in enumerate(table.sites)
    ]


def site_result(
    units: UnitSet,
    site: Site,
    metric: str,
    interval: Interval,
    s: int,
    *,
    control: str | None = None,
    subtask: str | None = None,
) -> Result:
    """The flat result of site number `s` of an interval."""
    low, high = float(interval.low_S[s]), float(interval.high_S[s])
    of_subtask: Result = {} if subtask is None else {"subtask": subtask}
    return {
        "task": units.task,
        **of_subtask,
        "dataset": units.dataset,
        "split": units.split,
        **site._asdict(),
        "control": control,
        "metric": metric,
        "value": float(interval.value_S[s]),
        "ci": None if np.isnan(low) else [low, high],
        "n": int(interval.n_S[s]),
        "clusters": int(interval.clusters_S[s]),
        "cluster": units.cluster,
    }
