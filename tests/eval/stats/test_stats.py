"""Bootstrap: against a plain loop, coverage by simulation, and what clusters and halves are for."""

import numpy as np
import pytest

from kvfix.eval.stats import bootstrap as stats


def test_equals_a_plain_loop_over_resamples_of_clusters() -> None:
    rng = np.random.default_rng(1)
    clusters = ["a", "a", "b", "c", "c", "c", "d", "e"]
    part, whole = rng.random((8, 2)), 1 + rng.random((8, 2))
    got = stats.pooled_ratio_bootstrap(part, whole, clusters, resamples=4000, seed=3)

    names, rows = sorted(set(clusters)), []
    for _ in range(4000):
        drawn = rng.choice(len(names), len(names))
        units = [i for d in drawn for i, c in enumerate(clusters) if c == names[d]]
        rows.append(part[units].sum(0) / whole[units].sum(0))
    assert got.value_S == pytest.approx(part.sum(0) / whole.sum(0))
    # t(4) = 2.776 at 97.5 %, times sqrt(5 / 4) = 3.104 normal deviations: a tail of 0.000955.
    low, high = np.quantile(rows, [0.000955, 1 - 0.000955], axis=0)
    assert got.low_S == pytest.approx(low, abs=0.03)
    assert got.high_S == pytest.approx(high, abs=0.03)
    assert got.n_S.tolist() == [8, 8] and got.clusters_S.tolist() == [5, 5]


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_nominal_95_percent_covers_93_to_97_percent(kind: str) -> None:
    rng, covered, n_clusters = np.random.default_rng(5), 0, 20
    experiments = 1000
    clusters = np.repeat(np.arange(n_clusters), 3)
    for e in range(experiments):
        x = rng.normal(size=n_clusters)[clusters] + rng.normal(size=len(clusters))
        if kind == "mean":
            found, truth = stats.clustered_bootstrap(x, clusters, resamples=1000, seed=e), 0.0
        else:
            whole = rng.uniform(1, 3, len(clusters))
            part = whole * (0.5 + 0.1 * x)
            truth = 0.5
            found = stats.pooled_ratio_bootstrap(part, whole, clusters, resamples=1000, seed=e)
        covered += int(found.low_S[0] <= truth <= found.high_S[0])
    assert 0.93 <= covered / experiments <= 0.97


def test_clusters_widen_the_interval_of_repeated_units() -> None:
    x = np.repeat(np.random.default_rng(0).normal(size=30), 10)
    by_cluster = stats.clustered_bootstrap(x, np.repeat(np.arange(30), 10), seed=0)
    as_if_free = stats.clustered_bootstrap(x, np.arange(300), seed=0)
    widths = [float(i.high_S[0] - i.low_S[0]) for i in (by_cluster, as_if_free)]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.15)


def test_missing_scores_are_left_out_per_site() -> None:
    x = np.array([[1.0, np.nan, np.nan], [0.0, 0.25, np.nan], [1.0, 0.75, np.nan]])
    got = stats.clustered_bootstrap(x, [0, 1, 2])
    assert got.value_S[:2] == pytest.approx([2 / 3, 0.5])
    assert got.n_S.tolist() == [3, 2, 0] and got.clusters_S.tolist() == [3, 2, 0]
    assert np.isnan(got.value_S[2]) and np.isnan(got.low_S[2])


def test_paired_difference_is_narrower_than_unpaired_and_checks_shapes() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(60, 1))
    after = before + 0.1 + 0.01 * rng.normal(size=(60, 1))
    got = stats.paired_bootstrap(before, after, np.arange(60))
    assert got.value_S[0] == pytest.approx(0.1, abs=0.01)
    assert 0 < got.low_S[0] < got.high_S[0] < 0.2
    with pytest.raises(ValueError, match="same units"):
        stats.paired_bootstrap(before, after[:-1], np.arange(60))


def test_pooled_ratio_recomputes_sums_and_averages_strata() -> None:
    part, whole = np.array([1.0, 9.0, 1.0]), np.array([2.0, 10.0, 4.0])
    plain = stats.pooled_ratio_bootstrap(part, whole, [0, 1, 2])
    by_class = stats.pooled_ratio_bootstrap(part, whole, [0, 1, 2], strata=["x", "x", "y"])
    assert plain.value_S[0] == pytest.approx(11 / 16)
    assert by_class.value_S[0] == pytest.approx((10 / 12 + 1 / 4) / 2)
    assert by_class.low_S[0] >= 0.25 - 1e-12  # a resample without class y averages x alone
    assert by_class.high_S[0] <= 0.9 + 1e-12


def test_one_cluster_has_no_interval_and_bad_input_says_so() -> None:
    got = stats.clustered_bootstrap([0.2, 0.4], ["same", "same"])
    assert got.value_S[0] == pytest.approx(0.3)
    assert np.isnan(got.low_S[0]) and np.isnan(got.high_S[0])
    with pytest.raises(ValueError, match="one of clusters a unit"):
        stats.clustered_bootstrap([0.2, 0.4], ["a"])
    with pytest.raises(ValueError, match="at least one unit"):
        stats.clustered_bootstrap(np.empty((0, 3)), [])


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).random((12, 3))
    one = stats.clustered_bootstrap(x, np.arange(12), resamples=500, seed=7)
    monkeypatch.setattr(stats, "_BLOCK", 100)
    two = stats.clustered_bootstrap(x, np.arange(12), resamples=500, seed=7)
    other = stats.clustered_bootstrap(x, np.arange(12), resamples=500, seed=8)
    assert np.allclose(one.low_S, two.low_S, rtol=0, atol=1e-12)
    assert not np.allclose(one.low_S, other.low_S, rtol=0, atol=1e-12)


def test_halves_split_clusters_not_units_and_the_larger_half_reports() -> None:
    clusters = np.repeat(np.arange(7), 5)
    chooses = stats.halves(clusters, seed=2).reshape(7, 5)
    assert (chooses == chooses[:, :1]).all()
    assert (~chooses).sum() == 20


def test_classes_that_do_not_occur_count_zero() -> None:
    part, whole, labels = np.array([1.0, 1, 3]), np.array([2.0, 2, 4]), ["a", "a", "b"]
    got = [
        stats.pooled_ratio_bootstrap(
            part, whole, np.arange(3), strata=labels, n_strata=n, resamples=200
        )
        for n in (None, 2, 5)
    ]
    assert [float(g.value_S[0]) for g in got] == [0.625, 0.625, 0.25]
    assert got[2].low_S == pytest.approx(0.4 * got[0].low_S)
    assert got[2].high_S == pytest.approx(0.4 * got[0].high_S)
