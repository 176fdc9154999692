"""A benchmark's figures with their intervals, as every `kvfix score` command reports them.

Shapes: N units, or entries where a unit has several.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from kvfix.eval.stats import Interval, clustered_bootstrap, pooled_ratio_bootstrap


class Figure(NamedTuple):
    """One figure; `part` is what it is of (a fold, a category), None for all units."""

    metric: str
    value: float
    ci: tuple[float, float] | None
    n: int
    clusters: int
    part: str | None = None


def mean_figure(
    metric: str,
    value: float,
    values_N: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    part: str | None = None,
) -> Figure:
    """A mean over units, with the clustered bootstrap's interval.

    Args:
        metric: its name.
        value: the mean, as the metric's pure function has it.
        values_N: what it is the mean of.
        clusters: one label a unit.
        seed: of the bootstrap.
        part: see `Figure`.
    """
    got = clustered_bootstrap(np.asarray(values_N, float), clusters, seed=seed)
    _check(value, float(got.value_S[0]))
    return Figure(metric, value, _ends(got), int(got.n_S[0]), int(got.clusters_S[0]), part)


def ratio_figure(
    metric: str,
    value: float,
    parts_N: Sequence[float] | np.ndarray,
    wholes_N: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    strata: Sequence[Hashable] | None = None,
    n_strata: int | None = None,
    n: int | None = None,
    part: str | None = None,
) -> Figure:
    """A pooled ratio, or the mean of one a stratum, recomputed in every resample.

    Args:
        metric: its name.
        value: the ratio, as the metric's pure function has it.
        parts_N: intersections, or correct keypoints.
        wholes_N: unions, or all keypoints.
        clusters: one label an entry.
        seed: of the bootstrap.
        strata: one label an entry (a class, a side); each ratio is pooled within its stratum.
        n_strata: how many strata the mean is over where that is more than occur: the others are 0.
        n: units, where that is not the number of entries.
        part: see `Figure`.
    """
    wholes = np.asarray(wholes_N, float)
    got = pooled_ratio_bootstrap(
        np.asarray(parts_N, float), wholes, clusters, strata=strata, seed=seed
    )
    share = 1.0
    if strata is not None and n_strata is not None:
        occur = {s for s, whole in zip(strata, wholes, strict=True) if whole > 0}
        share = len(occur) / n_strata
    _check(value, share * float(got.value_S[0]))
    units = int(got.n_S[0]) if n is None else n
    return Figure(metric, value, _ends(got, share), units, int(got.clusters_S[0]), part)


def _check(value: float, resampled: float) -> None:
    """The interval must be of the figure that it stands beside."""
    assert math.isclose(value, resampled, abs_tol=1e-9), (value, resampled)


def _ends(got: Interval, share: float = 1.0) -> tuple[float, float] | None:
    low, high = share * float(got.low_S[0]), share * float(got.high_S[0])
    return None if math.isnan(low) else (low, high)
