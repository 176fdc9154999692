"""The rule that picks the best value layer: on one half of the clusters, reported on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvfix.eval.results import Table
from kvfix.eval.stats.bootstrap import halves


@dataclass(frozen=True)
class Best:
    """The best value layer, and the units that may report on it."""

    layer: int
    column: int
    report_N: np.ndarray  # bool over units; all of them when there are too few clusters to split
    honest: bool  # False: chosen and reported on the same units


def best_value_layer(table: Table, *, seed: int = 0) -> Best | None:
    """Choose the value layer of the highest mean on half of the clusters; None without values."""
    columns = table.columns("value")
    if not columns:
        return None
    everything = np.ones(len(table.ids), bool)
    honest = len(set(table.clusters)) >= 4  # an interval needs two clusters in the half it is of
    chooses_N = halves(table.clusters, seed=seed) if honest else everything
    means = np.nanmean(table.score_NS[chooses_N][:, columns], axis=0)
    column = columns[int(np.nanargmax(means))]
    layer = table.sites[column].layer
    assert layer is not None
    return Best(layer, column, ~chooses_N if honest else everything, honest)
