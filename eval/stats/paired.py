"""Before against after on the same units: exact tests, stratified intervals, what could be seen.

Shapes: N units, T tasks, B resamples, S sites. A difference is after - before, of shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from kvfix.data.groups import grouped
from kvfix.eval.stats.bootstrap import Interval, codes, pooled_ratio_bootstrap

_BLOCK = 2**22  # elements of one block of drawn clusters (32 MiB)


class Flips(NamedTuple):
    """Of n questions, `fixed` are answered right after only, `broken` before only."""

    n: int
    fixed: int
    broken: int

    @property
    def discordance(self) -> float:
        """Share of questions whose answer changed sides, in [0, 1]."""
        return (self.fixed + self.broken) / self.n


class Change(NamedTuple):
    """A difference with its interval; the ends are NaN where a task has fewer than two clusters."""

    value: float
    low: float
    high: float


class MacroMicro(NamedTuple):
    """The difference averaged over tasks (macro) and over questions (micro)."""

    macro: Change
    micro: Change


class Ratio(NamedTuple):
    """Parts and wholes of a pooled ratio, each (N, S) or (N,): intersections and unions."""

    part: np.ndarray
    whole: np.ndarray


def flips(before_N: np.ndarray, after_N: np.ndarray) -> Flips:
    """Count what was fixed and what was broken, from 0 (wrong) or 1 (right) of each question."""
    before, after = np.asarray(before_N), np.asarray(after_N)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(
            f"expected the same questions twice, got {before.shape} before, {after.shape} after"
        )
    if not (np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()):
        raise ValueError("expected answers as 0 (wrong) or 1 (right), got other values")
    was, now = before.astype(bool), after.astype(bool)
    return Flips(len(was), int((~was & now).sum()), int((was & ~now).sum()))


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided McNemar p: the binomial test of `fixed` out of fixed + broken at 1/2.

    Questions count as independent. No changed answer gives 1.
    """
    if min(fixed, broken) < 0:
        raise ValueError(f"expected counts of at least 0, got fixed {fixed}, broken {broken}")
    # The binomial is symmetric: twice its shorter tail.
    return float(min(1.0, 2 * special.bdtr(min(fixed, broken), fixed + broken, 0.5)))


def holm(p_T: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    p = np.asarray(p_T, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p-values in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(
        1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1, dtype=np.float64))
    )
    return adjusted


def minimum_detectable(changes: Sequence[Flips], *, macro: bool = False) -> float | None:
    """The smallest true difference, a share, that so many questions would show with power 0.8.

    `(z_level + z_power) * sqrt(sum_t w_t^2 q_t / n_t)` with q_t the observed discordance: the
    normal approximation of McNemar's test, two-sided of size 0.05, with the null's variance
    (Miettinen 1968, without the small term -difference^2). Questions count as independent. With
    `macro` every task weighs the same (w = 1/T), else every question does (w = n_t / N). None when
    no answer changed, as nothing can be inferred from that.
    """
    if not changes:
        raise ValueError("expected at least one task, got none")
    n_T = np.array([c.n for c in changes], float)
    share_T = np.array([c.discordance for c in changes])
    weight_T = np.full(len(n_T), 1 / len(n_T)) if macro else n_T / n_T.sum()
    if not share_T.any():
        return None
    deviations = special.ndtri((1 + 0.95) / 2) + special.ndtri(0.8)
    return float(deviations * np.sqrt((weight_T**2 * share_T / n_T).sum()))


def stratified_paired_bootstrap(
    before_N: np.ndarray,
    after_N: np.ndarray,
    tasks: Sequence[Hashable],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> MacroMicro:
    """Macro and micro difference; clusters are drawn with replacement within each task.

    A benchmark's tasks and their sizes are fixed, its questions are a sample: so tasks are strata,
    never drawn, and micro weighs a task by its real number of questions. Percentile intervals; each
    task's draws are stretched by sqrt(G / (G - 1)) for its G clusters and the tail is that of a t
    with Welch and Satterthwaite's degrees of freedom, so that few questions a task do not give too
    short an interval. `clusters` are labels of units; the same label in two tasks means two
    clusters.
    """
    before, after = np.asarray(before_N, float), np.asarray(after_N, float)
    if not (before.shape == after.shape == (len(tasks),) == (len(clusters),)) or not before.size:
        raise ValueError(
            f"expected one score a unit before and after, a task and a cluster, got {before.shape},"
            f" {after.shape}, {len(tasks)} tasks and {len(clusters)} clusters"
        )
    difference_N = after - before
    if not np.isfinite(difference_N).all():
        raise ValueError("expected finite scores, got NaN or infinity")
    rng = np.random.default_rng(seed)
    members = grouped(range(len(tasks)), lambda i: tasks[i])
    value_T, n_T, clusters_T = np.empty((3, len(members)))
    draws_BT = np.empty((resamples, len(members)))
    for t, units in enumerate(members.values()):
        sums_G2 = _cluster_sums(difference_N[units], [clusters[i] for i in units])
        value_T[t], n_T[t], clusters_T[t] = difference_N[units].mean(), len(units), len(sums_G2)
        draws_BT[:, t] = _draw_means(sums_G2, resamples, rng)
    macro_T, micro_T = np.full(len(n_T), 1 / len(n_T)), n_T / n_T.sum()
    return MacroMicro(
        _weighted(value_T, draws_BT, clusters_T, macro_T, level),
        _weighted(value_T, draws_BT, clusters_T, micro_T, level),
    )


def paired_ratio_bootstrap(
    before: Ratio,
    after: Ratio,
    clusters: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Difference of two pooled ratios of the same units, both recomputed in each resample.

    The other arguments are those of `pooled_ratio_bootstrap`.
    """
    n = len(clusters)
    if {len(x) for x in (*before, *after)} != {n}:
        raise ValueError(
            f"expected {n} units before and after, got {[len(x) for x in (*before, *after)]}"
        )
    # Before (negated) and after are two strata of the same clusters: the mean over strata that the
    # bootstrap takes is half the difference.
    labels = [0] * n if strata is None else list(strata)
    half = pooled_ratio_bootstrap(
        np.concatenate((-np.asarray(before.part, float), np.asarray(after.part, float))),
        np.concatenate((before.whole, after.whole)),
        [*clusters, *clusters],
        strata=[*((side, label) for side in (0, 1) for label in labels)],
        level=level,
        resamples=resamples,
        seed=seed,
    )
    counted_S = ((np.asarray(before.whole) > 0) | (np.asarray(after.whole) > 0)).sum(0)
    ends = (2 * end_S for end_S in half[:3])
    return Interval(*ends, np.atleast_1d(counted_S), half.clusters_S)


def _cluster_sums(difference_N: np.ndarray, labels: Sequence[Hashable]) -> np.ndarray:
    """(G, 2): each cluster's sum of differences and its number of units."""
    code_N, _ = codes(labels, len(labels), "clusters")
    return np.stack((np.bincount(code_N, difference_N), np.bincount(code_N)), axis=1)


def _draw_means(sums_G2: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(B,) means over the units of G clusters drawn with replacement."""
    n, step = len(sums_G2), max(1, _BLOCK // len(sums_G2))
    means = []
    for start in range(0, resamples, step):
        drawn_BG = rng.integers(n, size=(min(step, resamples - start), n))
        means.append(sums_G2[:, 0][drawn_BG].sum(1) / sums_G2[:, 1][drawn_BG].sum(1))
    return np.concatenate(means)


def _weighted(
    value_T: np.ndarray,
    draws_BT: np.ndarray,
    clusters_T: np.ndarray,
    weight_T: np.ndarray,
    level: float,
) -> Change:
    value = float(value_T @ weight_T)
    if (clusters_T < 2).any():
        return Change(value, np.nan, np.nan)
    stretch_T = np.sqrt(clusters_T / (clusters_T - 1))
    deviation_BT = (draws_BT - value_T) * stretch_T * weight_T
    variance_T = deviation_BT.var(axis=0)
    if not variance_T.any():
        return Change(value, value, value)
    freedom = variance_T.sum() ** 2 / (variance_T**2 / (clusters_T - 1)).sum()
    tail = special.ndtr(-special.stdtrit(freedom, (1 + level) / 2))
    low, high = value + np.quantile(deviation_BT.sum(1), (tail, 1 - tail))
    return Change(value, float(low), float(high))
