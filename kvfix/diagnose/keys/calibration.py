"""Which image keys are input-agnostic: the ratio r, its threshold tau, and how sure that is.

Shapes: L layers, H KV heads, P grid cells, G groups of images, S shuffles, M keys of the model.

r = tr Var / (tr Var + |mean|^2) over images, at each (layer, KV head, cell); |mean|^2 is freed of
its bias, tr Var / n. A key is agnostic when r < tau, and tau, one a model, is the smallest of

1. the fence. With x = log(r / (1 - r)): sqrt(2 / (9 alpha)) spreads below the median, where median
   and spread (root mean square distance from the median, of the keys below it) are those of the
   keys on the fence's near side. Where several fences are consistent with themselves in this way,
   the highest that has fewer than half of the keys beyond it: so neither one agnostic key nor many
   hide themselves. By Gauss's inequality at most a share alpha of keys lies beyond the fence if
   they thin out below their median, whatever their distribution is otherwise. (The choice of the
   highest fence spoils this for alpha above 0.02, which is refused.)
2. the alpha quantile of shuffled keys. Each cell keeps its mean key, while how far its key moves
   between images is dealt out anew over the cells of its head, for each group of images apart: then
   no cell is more constant than another. Heads that are agnostic as a whole stay as they are when
   shuffled, and are left out.
3. 0.1: a key of which a tenth of the mean square moves with the image is not agnostic, however much
   the others move.

Why not one of the obvious other rules. A fixed r: trained LMs add one large common direction to all
image keys, so that r is 0.05 everywhere and everything would be agnostic. Keys shuffled over cells,
means and all: where each cell has a mean key of its own, real keys are far more constant than such
ones, and most of a sound model is flagged. A quantile of the model's own keys: flags its share of
any model. Otsu's threshold or a mixture: splits every model in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from kvfix.diagnose.keys.statistics import Moments, merged
from kvfix.eval.stats.bootstrap import Interval

ALPHA = 0.01
MOST_DEPENDENT = 0.1  # r of an agnostic key is below this in any model
LARGEST_ALPHA = 0.02
LOWEST = 1e-12  # r below this is rounding: the key does not move at all, and is agnostic
SHUFFLES = 16
SMALLEST_SIDE = 0.05  # share of a layer's keys on each side of a split
EVEN_THIRD = 1 / 3  # of keys spread evenly between two points, those in the middle third


class Calibration(NamedTuple):
    """Tau and where it comes from."""

    tau: float  # in (0, 0.1]; keys with r below it are agnostic
    fence: float  # rule 1
    shuffled_quantile: float  # rule 2; 1 where no head is left to shuffle
    # Share of shuffled keys below tau, on shuffles that tau has not seen; NaN where no head is left
    # to shuffle.
    null_fpr: float
    heads_left_out: int  # heads with at least half of their cells agnostic


class Detection(NamedTuple):
    """r in [0, 1] and whether it is below tau, for each key."""

    r_LHP: np.ndarray
    agnostic_LHP: np.ndarray
    calibration: Calibration


class Halves(NamedTuple):
    """Agreement of the keys found on two halves of the images."""

    jaccard: float  # of the two sets; NaN where both are empty
    chance: float  # what two random sets of their sizes would have
    sizes: tuple[int, int]  # keys found on each half


def dependence(variance_LHP: np.ndarray, mean_square_LHP: np.ndarray, n: int) -> np.ndarray:
    """Ratio r of tr Var and |mean|^2 over n images, in [0, n / (n + 1)]; 0: the key never moves.

    |mean|^2 is taken as at least tr Var / n, its own sampling error.
    """
    error = variance_LHP / n
    constant = np.maximum(mean_square_LHP - error, error)
    whole = variance_LHP + constant
    return np.divide(variance_LHP, whole, out=np.zeros_like(whole), where=variance_LHP > 0)


def log_odds(r: np.ndarray) -> np.ndarray:
    """log(r / (1 - r)): of the moving part over the constant part; finite."""
    return special.logit(np.clip(r, LOWEST, 1 - LOWEST))


def check_alpha(alpha: float) -> None:
    """Refuse a false-positive rate that the fence would not keep."""
    if not 0 < alpha <= LARGEST_ALPHA:
        raise ValueError(f"expected alpha in (0, {LARGEST_ALPHA}], found {alpha}")


def fence(r: np.ndarray, *, alpha: float = ALPHA) -> float:
    """Rule 1 of the module, in units of r, of all M keys; alpha is in (0, 0.02]."""
    check_alpha(alpha)
    x_M = np.sort(log_odds(r), axis=None)
    m = len(x_M)
    beyond = np.arange((m + 1) // 2)  # candidates: so many lowest keys are agnostic
    middle = (m - beyond) // 2 + beyond
    median = (x_M[middle] + x_M[m - 1 - (m - beyond) // 2]) / 2
    # Sums over the keys from `beyond` up to the median, by differences of running sums.
    below = m - (m - beyond) // 2
    run = [np.append(0.0, np.cumsum((x_M - x_M[-1]) ** p)) for p in (1, 2)]
    sums = [total[below] - total[beyond] for total in run]
    off = median - x_M[-1]
    count = below - beyond
    spread = np.sqrt(np.maximum(sums[1] - 2 * off * sums[0] + count * off**2, 0) / count)
    fence_M = median - np.sqrt(2 / (9 * alpha)) * spread
    last_beyond = np.append(-np.inf, x_M)[beyond]
    consistent = (last_beyond < fence_M) & (fence_M <= x_M[beyond])
    # None may be, where the keys below the median form a group of their own: then all keys count.
    chosen = beyond[consistent][-1] if consistent.any() else 0
    return float(special.expit(fence_M[chosen]))


def shuffled(
    groups: Sequence[Moments],
    mean_square_LHP: np.ndarray,
    rng: np.random.Generator,
    *,
    shuffles: int,
) -> np.ndarray:
    """Ratio r of shuffled keys (rule 2 of the module), (S, L, H, P); |mean key|^2 is over all
    groups.

    One order of cells is drawn for a group and shuffle, the same for all heads.
    """
    n = sum(group.n for group in groups)
    weights = [group.n / n for group in groups]
    variances = [group.variance_LHP for group in groups]
    out = []
    for _ in range(shuffles):
        dealt = sum(
            weight * variance[..., rng.permutation(variance.shape[-1])]
            for weight, variance in zip(weights, variances, strict=True)
        )
        out.append(dependence(np.asarray(dealt), mean_square_LHP, n))
    return np.stack(out)


def detect(groups: Sequence[Moments], *, alpha: float = ALPHA, seed: int = 0) -> Detection:
    """Calibrate tau on some groups of images, for a rate in (0, 0.02], and flag their keys."""
    total = merged(groups)
    mean_square = total.mean_square_LHP
    r = dependence(total.variance_LHP, mean_square, total.n)
    beyond = fence(r, alpha=alpha)
    first = min(beyond, MOST_DEPENDENT)
    whole_LH = (r < first).mean(-1) >= 0.5
    rng = np.random.default_rng(seed)
    null = shuffled(groups, mean_square, rng, shuffles=2 * SHUFFLES)[:, ~whole_LH]
    calibrates, held_out = null[:SHUFFLES], null[SHUFFLES:]
    quantile = float(np.quantile(calibrates, alpha)) if null.size else 1.0
    tau = max(min(first, quantile), LOWEST)
    fpr = float((held_out < tau).mean()) if null.size else float("nan")
    found = Calibration(tau, beyond, quantile, fpr, int(whole_LH.sum()))
    return Detection(r, r < tau, found)


def without_each(groups: Sequence[Moments], *, alpha: float, seed: int) -> list[np.ndarray]:
    """The keys found without each group in turn, tau calibrated anew."""
    return [
        detect([*groups[:g], *groups[g + 1 :]], alpha=alpha, seed=seed).agnostic_LHP
        for g in range(len(groups))
    ]


def jackknife(
    value_S: np.ndarray, without_GS: np.ndarray, *, n: int, level: float = 0.95
) -> Interval:
    """Interval of shares by the delete-a-group jackknife, Student's t with G - 1 degrees.

    `value_S` are from all `n` images, `without_GS` the same without each group.
    """
    value_S, without_GS = np.atleast_1d(value_S), without_GS.reshape(len(without_GS), -1)
    g = len(without_GS)
    error_S = np.sqrt((g - 1) / g * ((without_GS - without_GS.mean(0)) ** 2).sum(0))
    reach_S = special.stdtrit(g - 1, (1 + level) / 2) * error_S
    low_S, high_S = np.clip((value_S - reach_S, value_S + reach_S), 0, 1)
    ones = np.ones(len(value_S), int)
    return Interval(value_S, low_S, high_S, n * ones, g * ones)


def halves_agree(groups: Sequence[Moments], *, alpha: float, seed: int) -> Halves:
    """Detect on every other group and on the rest, each with a tau of its own."""
    one, other = (
        detect(half, alpha=alpha, seed=seed).agnostic_LHP for half in (groups[::2], groups[1::2])
    )
    a, b, both, either = (int(s.sum()) for s in (one, other, one & other, one | other))
    by_chance = a * b / one.size
    if not either:
        return Halves(float("nan"), float("nan"), (a, b))
    return Halves(both / either, by_chance / (a + b - by_chance), (a, b))


def is_split(r_HP: np.ndarray, agnostic_HP: np.ndarray) -> bool:
    """Whether a layer's keys fall into two groups with a valley between.

    Each side holds at least 5 % of the keys, and of the keys between the two sides' medians (in log
    odds) the middle third of the way holds less than half of what it would if they were spread
    evenly. Keys of one peak, wherever they are cut in two, hold about an even share there.
    """
    share = agnostic_HP.mean()
    if not SMALLEST_SIDE <= share <= 1 - SMALLEST_SIDE:
        return False
    x = log_odds(r_HP)
    low, high = np.median(x[agnostic_HP]), np.median(x[~agnostic_HP])
    between = x[(x > low) & (x < high)]
    if not len(between):
        return True
    third = (high - low) / 3
    middle = ((between > low + third) & (between < high - third)).mean()
    return bool(middle < EVEN_THIRD / 2)


def split_from(split_L: np.ndarray) -> int | None:
    """The first split layer from which at least half of the layers on are split; None without."""
    for layer in np.flatnonzero(split_L):
        if split_L[layer:].mean() >= 0.5:
            return int(layer)
    return None


def lowest_keys(r_LHP: np.ndarray, share: float) -> np.ndarray:
    """(L, H, P) bool: the share of a model's keys that depend least on the image, whatever tau is.

    For interventions in a model without agnostic keys; name them as what they are.
    """
    wanted = round(share * r_LHP.size)
    if not 0 < wanted < r_LHP.size:
        raise ValueError(f"expected a share in (0, 1) that is at least one key, found {share}")
    chosen = np.zeros(r_LHP.size, bool)
    chosen[np.argsort(r_LHP, axis=None, kind="stable")[:wanted]] = True
    return chosen.reshape(r_LHP.shape)
