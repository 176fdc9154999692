"""The rule for tau: it finds many or few, flags no more than it says, and shuffles what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from key_plants import gaussian_keys, groups_of, moments_of
from scipy import special, stats

from kvfix.diagnose.keys.calibration import (
    ALPHA,
    LARGEST_ALPHA,
    MOST_DEPENDENT,
    detect,
    fence,
    halves_agree,
    is_split,
    jackknife,
    log_odds,
    lowest_keys,
    shuffled,
    split_from,
    without_each,
)
from kvfix.diagnose.keys.statistics import merged

SHAPE = (3, 2, 40)
ONES = np.ones(SHAPE)


def flagged(x: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Which log odds lie beyond the fence."""
    r = special.expit(x)
    return r < fence(r, alpha=alpha)


# the fence


@pytest.mark.parametrize("alpha", [0.005, ALPHA, LARGEST_ALPHA])
@pytest.mark.parametrize(
    "law",
    [
        stats.norm(-2, 1),
        stats.logistic(-1, 0.5),
        stats.uniform(-3, 4),
        stats.laplace(-2, 0.7),
        stats.t(4, -2, 0.5),
        stats.gumbel_r(-2, 1),
        stats.gumbel_l(-2, 1),  # a long tail towards small r
    ],
)
def test_one_peak_is_flagged_no_more_often_than_stated(law: Any, alpha: float) -> None:
    for seed in range(20):
        assert flagged(law.rvs(2000, random_state=seed), alpha).mean() <= alpha


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.49])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_few_and_many_agnostic_keys_are_found(share: float, spread: float) -> None:
    """Many of them neither hide each other nor pull the fence down to themselves."""
    rng = np.random.default_rng(0)
    planted = rng.random(4000) < share
    x = np.where(planted, rng.normal(-9, spread, 4000), rng.normal(-1, 1, 4000))
    assert np.array_equal(flagged(x), planted)


@pytest.mark.parametrize("rest", [range(-4, 5), range(-4, 6)])  # odd and even
def test_the_fence_is_that_of_the_remaining_keys(rest: range) -> None:
    x = np.array([-27.0, -26.5, -26, *rest])
    median = np.median(rest)
    below = np.array([v for v in rest if v <= median])
    spread = np.sqrt(np.mean((below - median) ** 2))
    got = log_odds(np.array(fence(special.expit(x[:, None]))))
    assert got == pytest.approx(median - np.sqrt(2 / (9 * ALPHA)) * spread)


# tau


def test_planted_keys_are_found_and_the_false_positive_rate_is_measured() -> None:
    planted = np.random.default_rng(1).random(SHAPE) < 0.1
    k = gaussian_keys(64, np.where(planted, 1e-4, 1.0), ONES)
    got = detect(groups_of(k), seed=3)
    assert np.array_equal(got.agnostic_LHP, planted)
    assert got.calibration.null_fpr == 0 and got.calibration.heads_left_out == 0
    assert got.calibration.tau <= MOST_DEPENDENT


def test_keys_that_move_a_tenth_are_not_agnostic_however_much_others_move() -> None:
    spread = np.where(np.arange(40) == 7, 0.5, 30.0) * ONES
    got = detect(groups_of(gaussian_keys(64, spread, ONES)))
    assert got.calibration.fence > 0.25 > got.r_LHP[..., 7].max() > MOST_DEPENDENT
    assert not got.agnostic_LHP.any() and got.calibration.tau <= MOST_DEPENDENT


def test_tau_is_no_larger_than_the_quantile_of_shuffled_keys() -> None:
    """In one layer means are longer and longer, while all keys move alike: nothing is agnostic."""
    length = 0.5 * ONES
    length[0] = np.sqrt(np.linspace(1, 16, 40))
    k = gaussian_keys(64, ONES, length, channels=256)  # many channels: r hardly scatters
    got = detect(groups_of(k), alpha=LARGEST_ALPHA)
    c = got.calibration
    assert c.tau == c.shuffled_quantile < MOST_DEPENDENT < c.fence
    assert c.heads_left_out == 0
    # A share alpha of all keys is 2.4 cells of each of the layer's heads.
    assert 0.5 * LARGEST_ALPHA < c.null_fpr < 1.5 * LARGEST_ALPHA
    assert got.agnostic_LHP.mean() <= 1.5 * LARGEST_ALPHA


def test_shuffling_deals_variances_out_and_keeps_means() -> None:
    still = np.where(np.arange(40) < 20, 1e-6, 1.0) * ONES
    groups = groups_of(gaussian_keys(64, still, 3 * ONES))
    mean_square = merged(groups).mean_square_LHP
    r = shuffled(groups, mean_square, np.random.default_rng(0), shuffles=200)
    assert r.shape == (200, *SHAPE)
    # 8 groups, each with a moving cell in half of the shuffles: the mean variance is a half.
    variance = (r / (1 - r) * mean_square).mean()
    assert variance == pytest.approx(0.5, rel=0.05)
    assert (r[..., :20].mean() / r[..., 20:].mean()) == pytest.approx(1, abs=0.05)
    always = (r < 1e-6).mean()  # all eight from still cells
    assert always == pytest.approx(0.5**8, abs=0.003)


def test_a_head_that_is_agnostic_as_a_whole_is_not_shuffled() -> None:
    spread = ONES.copy()
    spread[1, 1] = 0
    got = detect(groups_of(gaussian_keys(64, spread, ONES)))
    assert got.calibration.heads_left_out == 1 and got.calibration.null_fpr == 0
    assert np.array_equal(got.agnostic_LHP, spread == 0)
    everything = detect(groups_of(gaussian_keys(64, 0 * ONES, ONES)))
    assert everything.agnostic_LHP.all() and np.isnan(everything.calibration.null_fpr)


# moments, intervals, halves


def test_merged_groups_are_all_images_together() -> None:
    k = gaussian_keys(50, ONES, 100 * ONES)
    whole, parts = moments_of(k), merged(groups_of(k, 7))
    assert parts.n == 50 and np.allclose(parts.mean_LHPD, whole.mean_LHPD, rtol=1e-12)
    assert np.allclose(parts.m2_LHP, whole.m2_LHP, rtol=1e-9)
    assert np.allclose(whole.variance_LHP, k.var(0, ddof=1).sum(-1))
    assert np.allclose(whole.mean_square_LHP, (k.mean(0) ** 2).sum(-1))
    groups = groups_of(k)
    before = [g.mean_LHPD.clone() for g in groups]
    merged(groups)
    assert all(torch.equal(a, g.mean_LHPD) for a, g in zip(before, groups, strict=True))


def test_the_jackknife_is_that_of_the_textbook() -> None:
    """Of a mean, the delete-one jackknife is the standard error of the mean."""
    x = np.random.default_rng(0).random(8)
    without = (x.sum() - x) / 7
    got = jackknife(x.mean(), without, n=64)
    low, high = stats.t.interval(0.95, 7, x.mean(), stats.sem(x))
    assert (got.low_S[0], got.high_S[0]) == pytest.approx((low, high))
    assert got.n_S[0] == 64 and got.clusters_S[0] == 8
    clipped = jackknife(np.array([0.01, 0.99]), np.array([[0.0, 0.9], [0.3, 1.0]]), n=4)
    assert clipped.low_S[0] == 0 and clipped.high_S[1] == 1


def test_each_group_is_left_out_in_turn() -> None:
    planted = np.random.default_rng(1).random(SHAPE) < 0.1
    k = gaussian_keys(64, np.where(planted, 1e-4, 1.0), ONES)
    k[2::8, 0, 0, 0] = 0  # only group 2 moves this key
    k[2::8, 0, 0, 0] += np.arange(8)[:, None]
    k[np.arange(64) % 8 != 2, 0, 0, 0] = 1.0
    found = without_each(groups_of(k), alpha=ALPHA, seed=0)
    assert [bool(f[0, 0, 0]) for f in found] == [g == 2 for g in range(8)]
    assert all(np.array_equal(f[1:], planted[1:]) for f in found)


def test_halves_agree_on_what_is_there_and_not_on_what_one_half_shows() -> None:
    planted = np.random.default_rng(1).random(SHAPE) < 0.2
    both = halves_agree(groups_of(gaussian_keys(64, np.where(planted, 0, 1), ONES)), **SEED)
    share = planted.mean()
    assert both.jaccard == 1 and both.sizes == (planted.sum(), planted.sum())
    assert both.chance == pytest.approx(share / (2 - share))
    k = gaussian_keys(64, ONES, ONES)
    k[::2, 0, 0] = 1.0  # groups 0, 2, 4, 6 see 40 keys that stand still
    k[1::2, 1, 0] = 1.0  # the others see 40 others
    assert halves_agree(groups_of(k), **SEED)[::2] == (0.0, (40, 40))
    none = halves_agree(groups_of(gaussian_keys(64, ONES, ONES)), **SEED)
    assert np.isnan(none.jaccard) and none.sizes == (0, 0)


SEED = {"alpha": ALPHA, "seed": 0}


# where layers split


def test_two_groups_are_a_split_and_one_cut_in_two_is_none() -> None:
    rng = np.random.default_rng(0)
    for share in (0.06, 0.3, 0.5, 0.9):
        low = np.arange(600) < 600 * share
        x = np.where(low, rng.normal(-9, 1, 600), rng.normal(0, 1, 600))
        assert is_split(special.expit(x), low)
        for one in (rng.normal(-2, 1, 600), rng.uniform(-4, 0, 600), rng.gumbel(-2, 1, 600)):
            assert not is_split(special.expit(one), one < np.quantile(one, share))
    low = np.arange(600) < 24  # 4 % are too few for a group
    assert not is_split(special.expit(np.where(low, -9.0, 0.0)), low)
    assert not is_split(np.zeros(600), np.ones(600, bool))


def test_layers_split_from_the_first_after_which_half_do() -> None:
    assert split_from(np.array([0, 0, 0, 0], bool)) is None
    assert split_from(np.array([0, 1, 1, 1], bool)) == 1
    assert split_from(np.array([1, 0, 0, 0, 1, 1], bool)) == 0
    assert split_from(np.array([1, 0, 0, 0, 0, 1], bool)) == 5
    assert split_from(np.array([1, 0, 0, 0], bool)) is None


def test_the_lowest_keys_are_a_share_of_the_model() -> None:
    r = np.random.default_rng(0).random(SHAPE)
    chosen = lowest_keys(r, 0.05)
    assert chosen.sum() == 12 and r[chosen].max() < r[~chosen].min()
    assert lowest_keys(np.zeros(SHAPE), 0.1).sum() == 24  # ties too
    for share in (0.0, 0.001, 1.0):
        with pytest.raises(ValueError, match=rf"share in \(0, 1\).*found {share}"):
            lowest_keys(r, share)
