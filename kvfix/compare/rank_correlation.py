"""Spearman's rho of N points, with an interval and a p-value that hold for few points, too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special, stats

FEWEST = 5  # points from which on there is an interval
MOST_EXACT = 8  # 8! = 40,320 orders


class RankCorrelation(NamedTuple):
    """Spearman's rho of N points."""

    rho: float  # in [-1, 1]; NaN for fewer than three points, or where one side is constant
    low: float  # of the interval; NaN for fewer than `FEWEST` points, as `high` and `p`
    high: float
    p: float  # two-sided, of no association
    n: int


def rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> RankCorrelation:
    """Spearman's rho (ties get their mean rank) with its 95 % interval and p-value.

    Where rho is 1 or -1 Fisher's z is infinite: the inner end is then that of the next smaller rho
    that N points without ties can have, 1 - 12 / (N^3 - N), and the outer end is rho itself.
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (x_N, y_N))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two lists of one length, found shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite numbers, found NaN or infinity; leave such points out")
    n, nan = len(x), float("nan")
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(nan, nan, nan, nan, n)
    found = stats.spearmanr(x, y)
    rho = float(np.clip(found.statistic, -1, 1))
    if n < FEWEST:
        return RankCorrelation(rho, nan, nan, nan, n)
    p = _exact_p(x, y) if n <= MOST_EXACT else float(found.pvalue)
    return RankCorrelation(rho, *_interval(rho, n), p, n)


def _interval(rho: float, n: int) -> tuple[float, float]:
    inner = np.copysign(min(abs(rho), 1 - 12 / (n**3 - n)), rho)
    reach = special.ndtri((1 + 0.95) / 2) * np.sqrt((1 + inner**2 / 2) / (n - 3))
    z = np.arctanh(inner)
    whole = abs(rho) > abs(inner)
    return (
        rho if whole and rho < 0 else float(np.tanh(z - reach)),
        rho if whole and rho > 0 else float(np.tanh(z + reach)),
    )


def _exact_p(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """The share of all pairings of the ranks whose rho is at least as far from 0."""
    x, y = (v - v.mean() for v in (stats.rankdata(x_N), stats.rankdata(y_N)))

    def covariance(x: np.ndarray, axis: int) -> np.ndarray:
        # rho but for a factor that no order changes; a multiple of 1/4, made exact for ties.
        return np.round(4 * (x * y).sum(axis))

    tested = stats.permutation_test(
        (x,), covariance, permutation_type="pairings", vectorized=True, n_resamples=np.inf, axis=-1
    )
    # Two-sided in scipy is twice the smaller tail; by distance from 0 is the usual one for rho.
    return float((np.abs(tested.null_distribution) >= abs(tested.statistic)).mean())
