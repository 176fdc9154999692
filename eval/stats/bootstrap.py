"""Bootstrap intervals that resample clusters, for all sites at once; numpy, seeded.

Shapes: N units, S sites, G clusters, B resamples, K strata (classes, tasks).

Units of one cluster (frames of a sequence, sentences about a photo) are not independent, so
clusters are drawn with replacement, never units. A resample is a vector of G counts, so every
statistic that is a ratio of sums needs the clusters' sums only: (B, G) @ (G, S), never (B, N, S).
Sums of I and U are recomputed in each resample, as a ratio of sums is not a mean of ratios.

Intervals are percentile intervals widened for small G (the expanded percentile interval of
Hesterberg 2015, arXiv 1411.5279): plain ones are too short by sqrt((G - 1) / G) and use the
normal's tail.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

_BLOCK = 2**24  # float64 elements of one block of resampled statistics (128 MiB)
_FEW = 2**20  # draws that are kept for the next figure (8 MiB)


class Interval(NamedTuple):
    """The statistic and its interval at each site, with the units and clusters that count there.

    The value is NaN where no unit does, both ends where fewer than two clusters do.
    """

    value_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray
    n_S: np.ndarray
    clusters_S: np.ndarray


def clustered_bootstrap(
    values_NS: np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over units of (N, S) or (N,) scores with its interval, by one set of resamples a seed.

    A score of NaN is left out.
    """
    values = _units_by_sites(values_NS)
    present = ~np.isnan(values)
    return pooled_ratio_bootstrap(
        np.where(present, values, 0.0),
        present.astype(np.float64),
        clusters,
        level=level,
        resamples=resamples,
        seed=seed,
    )


def paired_bootstrap(
    before_NS: np.ndarray,
    after_NS: np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of after - before over the same units; one that lacks either score (NaN) is left out."""
    before, after = _units_by_sites(before_NS), _units_by_sites(after_NS)
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape} and after {after.shape} must hold the same units")
    return clustered_bootstrap(
        after - before, clusters, level=level, resamples=resamples, seed=seed
    )


def pooled_ratio_bootstrap(
    part_NS: np.ndarray,
    whole_NS: np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    strata: Sequence[Hashable] | np.ndarray | None = None,
    n_strata: int | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Sum of parts over sum of wholes (cIoU, pooled IoU, PCK per point), recomputed per resample.

    Both are (N, S) or (N,), and the wholes broadcast against the parts' sites. With `strata`, a
    class for each unit, ratios are pooled within a class, then averaged over classes (Pascal-5i
    mIoU); a class that a resample misses is left out of that resample's mean. `n_strata` is how
    many classes the mean is over, if that is more than occur; the others are 0.
    """
    part, whole = np.broadcast_arrays(_units_by_sites(part_NS), _units_by_sites(whole_NS))
    n_units, n_sites = part.shape
    group_N, n_clusters = codes(clusters, n_units, "clusters")
    stratum_N, n_found = (
        (np.zeros(n_units, int), 1) if strata is None else codes(strata, n_units, "strata")
    )
    cell_N = group_N * n_found + stratum_N
    shape = (n_clusters, n_found * n_sites)
    part_G = _sum_by(cell_N, n_clusters * n_found, part).reshape(shape)
    whole_G = _sum_by(cell_N, n_clusters * n_found, whole).reshape(shape)
    has_GKS = whole_G.reshape(n_clusters, n_found, n_sites) > 0
    share_S = 1.0 if n_strata is None else has_GKS.any(0).sum(0) / n_strata

    def statistic(counts_BG: np.ndarray) -> np.ndarray:
        top, bottom = counts_BG @ part_G, counts_BG @ whole_G
        ratio = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
        return share_S * _nanmean(ratio.reshape(len(counts_BG), n_found, n_sites), axis=1)

    value_S = statistic(np.ones((1, n_clusters)))[0]
    step = max(1, _BLOCK // max(n_clusters, 4 * shape[1]))
    draws_BS = np.concatenate(
        [statistic(counts_BG) for counts_BG in _draws(n_clusters, resamples, seed, step)]
    )
    clusters_S = has_GKS.any(1).sum(0)
    low_S, high_S = _percentiles(draws_BS, clusters_S, level)
    return Interval(value_S, low_S, high_S, (whole > 0).sum(0), clusters_S)


def halves(clusters: Sequence[Hashable] | np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(N,) bool: the units of a random half of the clusters, to choose on; the others report.

    The reporting half is the larger one when the number is odd: its interval is what people read.
    """
    code_N, n_clusters = codes(clusters, len(clusters), "clusters")
    order = np.random.default_rng(seed).permutation(n_clusters)
    return np.isin(code_N, order[: n_clusters // 2])


def _draws(n_clusters: int, resamples: int, seed: int, step: int) -> Iterator[np.ndarray]:
    """How often each cluster is in each resample, (B, G) for at most `step` resamples at a time."""
    if resamples * n_clusters <= _FEW and resamples <= step:
        yield _few_draws(n_clusters, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _drawn(rng, n_clusters, min(step, resamples - start))


@lru_cache(maxsize=4)
def _few_draws(n_clusters: int, resamples: int, seed: int) -> np.ndarray:
    """Kept: every figure of a task draws the same."""
    kept = _drawn(np.random.default_rng(seed), n_clusters, resamples)
    kept.flags.writeable = False
    return kept


def _drawn(rng: np.random.Generator, n_clusters: int, size: int) -> np.ndarray:
    shares = np.full(n_clusters, 1 / n_clusters)
    return rng.multinomial(n_clusters, shares, size=size).astype(np.float64)


def _units_by_sites(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) == 0:
        raise ValueError(f"scores must be (units, sites) with at least one unit, got {array.shape}")
    return array


def codes(
    labels: Sequence[Hashable] | np.ndarray, n_units: int, name: str
) -> tuple[np.ndarray, int]:
    """Labels -> 0..n-1 in order of first appearance, whatever they are."""
    if len(labels) != n_units:
        raise ValueError(f"expected one of {name} a unit, got {len(labels)} for {n_units} units")
    first: dict[Hashable, int] = {}
    codes = np.array([first.setdefault(label, len(first)) for label in labels])
    return codes, len(first)


def _sum_by(code_N: np.ndarray, n: int, values_NS: np.ndarray) -> np.ndarray:
    out = np.zeros((n, values_NS.shape[1]))
    np.add.at(out, code_N, values_NS)
    return out


def _nanmean(x: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN, silently, where nothing is left."""
    present = ~np.isnan(x)
    count = present.sum(axis)
    total = np.where(present, x, 0.0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _percentiles(
    draws_BS: np.ndarray, clusters_S: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile interval; NaN for a site with fewer than two clusters."""
    low, high = np.full(len(clusters_S), np.nan), np.full(len(clusters_S), np.nan)
    for n in np.unique(clusters_S[clusters_S >= 2]):
        at = clusters_S == n
        t = special.stdtrit(n - 1, (1 + level) / 2)
        tail = special.ndtr(-t * np.sqrt(n / (n - 1)))
        low[at], high[at] = np.nanquantile(draws_BS[:, at], (tail, 1 - tail), axis=0)
    return low, high
