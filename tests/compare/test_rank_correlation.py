"""Spearman's rho: known values, an exact p, and an interval that holds its level."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from kvfix.compare.rank_correlation import FEWEST, rank_correlation


def test_a_value_by_hand() -> None:
    # d = 0 1 1 0 0: rho = 1 - 6 * 2 / (5 * 24) = 0.9. Orders of five with |rho| >= 0.9: the
    # identity and four neighbours' swaps, and the same reversed: 10 of 120.
    got = rank_correlation(np.array([1, 2, 3, 4, 5]), np.array([10, 30, 20, 40, 50]))
    assert got.rho == pytest.approx(0.9) and got.p == pytest.approx(10 / 120) and got.n == 5
    z, reach = np.arctanh(0.9), 1.959964 * np.sqrt((1 + 0.81 / 2) / 2)
    assert (got.low, got.high) == pytest.approx((np.tanh(z - reach), np.tanh(z + reach)), abs=1e-6)


def test_only_the_order_counts_and_its_sign() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    got = rank_correlation(x, y)
    assert rank_correlation(np.exp(x), 3 * y - 7) == got
    turned = rank_correlation(-x, y)
    assert turned.rho == pytest.approx(-got.rho)
    assert (turned.low, turned.high) == pytest.approx((-got.high, -got.low))
    known = stats.spearmanr(x, y)
    assert (got.rho, got.p) == pytest.approx((known.statistic, known.pvalue))


@pytest.mark.parametrize("y", [[2.0, 1, 4, 3, 6, 5], [1.0, 1, 2, 2, 3, 0], [5.0, 5, 5, 5, 5, 1]])
def test_p_is_the_share_of_all_orders(y: list[float]) -> None:
    x = np.array([1.0, 2, 2, 4, 5, 6])
    rhos = [abs(stats.spearmanr(x, order).statistic) for order in permutations(y)]
    got = rank_correlation(x, np.array(y))
    wanted = np.mean(np.array(rhos) >= abs(got.rho) - 1e-9)
    assert got.p == pytest.approx(wanted)


def test_a_perfect_order_has_an_interval_too() -> None:
    got = rank_correlation(np.arange(6), np.arange(6))
    assert got.rho == got.high == 1 and 0 < got.low < 1 and got.p == pytest.approx(2 / 720)
    turned = rank_correlation(np.arange(6), -np.arange(6))
    assert (turned.rho, turned.low, turned.high) == pytest.approx((-1, -1, -got.low))
    assert rank_correlation(np.arange(20), np.arange(20)).low > got.low


def test_too_few_points_have_no_interval_and_no_p() -> None:
    few = rank_correlation(np.arange(FEWEST - 1), np.arange(FEWEST - 1))
    assert few.rho == 1 and np.isnan([few.low, few.high, few.p]).all()
    assert np.isnan(rank_correlation(np.arange(2), np.arange(2)).rho)
    assert np.isnan(rank_correlation(np.arange(6), np.ones(6)).rho)


def test_the_interval_holds_its_level() -> None:
    """Normal pairs of Pearson 0.6: Spearman's rho is 6 / pi * asin(0.3) = 0.582."""
    rng = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(0.3)
    draws = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(600, 20))
    held = [(g := rank_correlation(d[:, 0], d[:, 1])).low <= truth <= g.high for d in draws]
    assert 0.925 <= np.mean(held) <= 0.98


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        rank_correlation(np.arange(5), np.arange(6))
    with pytest.raises(ValueError, match="finite"):
        rank_correlation(np.array([1, 2, np.nan]), np.arange(3))
