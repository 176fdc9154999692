"""Paired statistics: values by hand, scipy's tests, plain loops, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kvfix.eval.stats import bootstrap as stats
from kvfix.eval.stats import paired
from kvfix.eval.stats.paired import Flips, Ratio


def test_fixed_and_broken_by_hand() -> None:
    before = np.array([1, 1, 0, 0, 0, 1])
    after = np.array([1, 0, 1, 1, 0, 1])
    got = paired.flips(before, after)
    assert got == Flips(n=6, fixed=2, broken=1) and got.discordance == pytest.approx(0.5)
    assert paired.flips(before.astype(bool), after.astype(bool)) == got
    assert paired.flips(after, before) == Flips(6, 1, 2)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ([1, 0], [1], "same questions twice"),
        ([], [], "same questions twice"),
        ([1, 0], [1, 0.5], "0 \\(wrong\\) or 1"),
        ([1, 0], [1, float("nan")], "0 \\(wrong\\) or 1"),
    ],
)
def test_what_is_no_answer_is_refused(before: list, after: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paired.flips(np.array(before), np.array(after))


def test_mcnemar_by_hand() -> None:
    # 6 : 0 -> 2 / 2^6; 5 : 1 -> 2 (1 + 6) / 2^6; as many one way as the other -> 1
    assert paired.mcnemar(6, 0) == pytest.approx(0.03125)
    assert paired.mcnemar(1, 5) == pytest.approx(14 / 64)
    assert paired.mcnemar(4, 4) == 1.0 and paired.mcnemar(0, 0) == 1.0
    # protocol's example: LLaVA-1.5 7B -> 13B on BLINK, 312 fixed, 198 broken
    assert paired.mcnemar(312, 198) == pytest.approx(5.1e-7, rel=0.01)
    with pytest.raises(ValueError, match="at least 0"):
        paired.mcnemar(-1, 3)


def test_mcnemar_equals_scipys_binomial_test_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    tables = [*rng.integers(0, 40, (150, 2)), *rng.integers(0, 900, (50, 2)), (0, 1), (7, 7)]
    for fixed, broken in tables:
        if fixed + broken == 0:
            continue
        wanted = scipy_stats.binomtest(int(fixed), int(fixed + broken), 0.5).pvalue
        assert paired.mcnemar(int(fixed), int(broken)) == pytest.approx(wanted, rel=1e-9)


def test_holm_by_hand() -> None:
    # sorted: .005 x4 = .02, .01 x3 = .03, .03 x2 = .06, .04 x1 = .04 -> raised to .06
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert paired.holm([0.2, 0.2, 0.01]) == pytest.approx([0.4, 0.4, 0.03])
    assert paired.holm([]).tolist() == []
    for bad in (1.1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            paired.holm([0.5, bad])


def test_minimum_detectable_effect_is_the_protocols() -> None:
    # 10 % discordance: 7.8 points a task of 130, 2.0 on all 1,901; 27 %: 12.8 and 3.3
    for share, task, overall in ((0.10, 0.078, 0.020), (0.27, 0.128, 0.033)):
        for n, wanted in ((130, task), (1901, overall)):
            changed = Flips(n, round(share * n), 0)
            assert paired.minimum_detectable([changed]) == pytest.approx(wanted, abs=6e-4)


def test_minimum_detectable_effect_weighs_questions_or_tasks() -> None:
    small, large = Flips(100, 10, 10), Flips(400, 20, 0)
    z = 1.959964 + 0.841621
    pooled = paired.minimum_detectable([small, large])
    assert pooled == pytest.approx(z * np.sqrt(40 / 500 / 500), rel=1e-5)
    assert pooled == pytest.approx(paired.minimum_detectable([Flips(500, 30, 10)]))
    macro = paired.minimum_detectable([small, large], macro=True)
    assert macro == pytest.approx(z * np.sqrt((0.2 / 100 + 0.05 / 400) / 4), rel=1e-5)
    assert paired.minimum_detectable([Flips(50, 0, 0)]) is None
    with pytest.raises(ValueError, match="at least one task"):
        paired.minimum_detectable([])


def test_the_minimum_detectable_effect_is_seen_in_about_80_percent_of_simulations() -> None:
    rng, n, discordance = np.random.default_rng(2), 400, 0.2
    effect = paired.minimum_detectable([Flips(n, round(n * discordance), 0)])
    assert effect is not None
    share = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    tables = rng.multinomial(n, share, size=2000)
    seen = np.mean([paired.mcnemar(int(f), int(b)) < 0.05 for f, b, _ in tables])
    assert 0.74 <= seen <= 0.86  # the exact test is a little shy of the approximation's 80 %


def test_macro_and_micro_by_hand() -> None:
    before = np.array([1, 0, 0, 0, 1, 1])
    after = np.array([1, 1, 0, 0, 1, 0])  # task x: +1 of 4; task y: -1 of 2
    tasks, ids = ["x"] * 4 + ["y"] * 2, list("abcdef")
    got = paired.stratified_paired_bootstrap(before, after, tasks, ids, resamples=500)
    assert got.macro.value == pytest.approx((0.25 - 0.5) / 2)
    assert got.micro.value == pytest.approx(0.0)
    assert got.macro.low < got.macro.value < got.macro.high
    shuffled = [5, 2, 0, 4, 1, 3]
    again = paired.stratified_paired_bootstrap(
        before[shuffled], after[shuffled], [tasks[i] for i in shuffled], ids, resamples=500
    )
    assert (again.macro.value, again.micro.value) == pytest.approx((-0.125, 0.0))


def test_equals_a_plain_loop_that_draws_clusters_within_tasks() -> None:
    rng = np.random.default_rng(4)
    sizes = {"x": 40, "y": 60}
    tasks = [t for t, n in sizes.items() for _ in range(n)]
    clusters = [i // 2 for i in range(100)]
    before = rng.integers(0, 2, 100)
    after = np.where(rng.random(100) < 0.3, 1 - before, before)
    got = paired.stratified_paired_bootstrap(before, after, tasks, clusters, seed=1)
    macro, micro = [], []
    for _ in range(4000):
        drawn = {}
        for task in sizes:
            names = sorted({c for c, t in zip(clusters, tasks, strict=True) if t == task})
            units = [2 * c + k for c in rng.choice(names, len(names)) for k in (0, 1)]
            drawn[task] = (after - before)[units]
        macro.append(np.mean([d.mean() for d in drawn.values()]))
        micro.append(np.concatenate(list(drawn.values())).mean())
    for change, plain in ((got.macro, macro), (got.micro, micro)):
        low, high = np.quantile(plain, (0.025, 0.975))
        # wider by about 3 %: sqrt(G / (G - 1)) and t instead of the normal, G = 20 and 30
        assert change.low == pytest.approx(low, abs=0.012) and change.low <= low + 0.003
        assert change.high == pytest.approx(high, abs=0.012) and change.high >= high - 0.003


def test_one_task_gives_the_clustered_paired_interval() -> None:
    rng = np.random.default_rng(0)
    before, after, clusters = rng.random(60), rng.random(60), np.repeat(np.arange(12), 5).tolist()
    one = paired.stratified_paired_bootstrap(before, after, ["x"] * 60, clusters, seed=3)
    wanted = stats.paired_bootstrap(before, after, clusters, seed=3)
    assert one.macro == one.micro
    assert one.macro.value == pytest.approx(wanted.value_S[0])
    assert one.macro.low == pytest.approx(wanted.low_S[0], abs=0.01)
    assert one.macro.high == pytest.approx(wanted.high_S[0], abs=0.01)


@pytest.mark.parametrize("a_cluster", [1, 3])
def test_nominal_95_percent_covers_93_to_97_percent(a_cluster: int) -> None:
    """Questions of 5 unequal tasks, each with its own accuracy and its own true change."""
    rng, experiments = np.random.default_rng(7), 600
    sizes = np.array([24, 30, 36, 42, 60])
    fix, spoil = np.array([0.3, 0.2, 0.1, 0.25, 0.15]), np.array([0.05, 0.1, 0.1, 0.3, 0.2])
    right = np.array([0.4, 0.5, 0.6, 0.3, 0.7])
    task_N = np.repeat(np.arange(5), sizes)
    clusters = (np.arange(sizes.sum()) // a_cluster).tolist()
    true_T = (1 - right) * fix - right * spoil
    truth = {"macro": true_T.mean(), "micro": float(true_T @ sizes / sizes.sum())}
    covered = dict.fromkeys(truth, 0)
    for e in range(experiments):
        # One draw a cluster, shared by some of its questions: these depend on each other.
        u, v = rng.random((2, len(task_N)))
        lead = np.arange(len(task_N)) // a_cluster * a_cluster
        shared = rng.random(len(task_N)) < 0.5
        u, v = np.where(shared, u[lead], u), np.where(shared, v[lead], v)
        before = u < right[task_N]
        after = np.where(before, v >= spoil[task_N], v < fix[task_N])
        got = paired.stratified_paired_bootstrap(
            before, after, task_N.tolist(), clusters, resamples=500, seed=e
        )
        for name, change in got._asdict().items():
            covered[name] += int(change.low <= truth[name] <= change.high)
    for name, count in covered.items():
        assert 0.93 <= count / experiments <= 0.97, name


def test_identical_scores_give_exactly_zero_and_one_cluster_gives_no_interval() -> None:
    scores = np.random.default_rng(0).random(8)
    tasks = ["x"] * 4 + ["y"] * 4
    got = paired.stratified_paired_bootstrap(scores, scores, tasks, list(range(8)), resamples=50)
    assert got.macro == got.micro == (0.0, 0.0, 0.0)
    alone = paired.stratified_paired_bootstrap(
        scores, scores[::-1], tasks, ["a"] * 4 + list("bcde"), resamples=50
    )
    assert np.isnan([alone.macro.low, alone.macro.high, alone.micro.low, alone.micro.high]).all()


def test_the_seed_decides_and_the_block_size_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    before, after, tasks = rng.random(30), rng.random(30), ["x", "y", "y"] * 10

    def run(seed: int) -> paired.MacroMicro:
        return paired.stratified_paired_bootstrap(
            before, after, tasks, list(range(30)), resamples=300, seed=seed
        )

    one, other = run(1), run(2)
    monkeypatch.setattr(paired, "_BLOCK", 100)
    assert run(1).macro == pytest.approx(one.macro) and run(1).micro == pytest.approx(one.micro)
    assert other.macro.value == one.macro.value and other.macro.low != one.macro.low


@pytest.mark.parametrize(
    ("after", "tasks", "clusters", "says"),
    [
        ([1.0], ["x", "x"], ["a", "b"], "one score a unit"),
        ([1.0, 0.0], ["x"], ["a", "b"], "one score a unit"),
        ([1.0, 0.0], ["x", "x"], ["a"], "one score a unit"),
        ([1.0, float("nan")], ["x", "x"], ["a", "b"], "finite"),
    ],
)
def test_units_that_do_not_fit_are_refused(
    after: list, tasks: list, clusters: list, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        paired.stratified_paired_bootstrap(np.zeros(2), np.array(after), tasks, clusters)


def test_pooled_ratios_are_recomputed_in_each_resample() -> None:
    rng = np.random.default_rng(1)
    clusters = ["a", "a", "b", "c", "c", "d", "e", "f"]
    before = Ratio(rng.random(8), 1 + rng.random(8))
    after = Ratio(rng.random(8), 1 + rng.random(8))
    got = paired.paired_ratio_bootstrap(before, after, clusters, seed=3)
    pooled = after.part.sum() / after.whole.sum() - before.part.sum() / before.whole.sum()
    assert got.value_S == pytest.approx([pooled])
    assert got.n_S.tolist() == [8] and got.clusters_S.tolist() == [6]
    names, plain = sorted(set(clusters)), []
    for _ in range(4000):
        units = [
            i for d in rng.choice(names, 6) for i, cluster in enumerate(clusters) if cluster == d
        ]
        was, now = (r.part[units].sum() / r.whole[units].sum() for r in (before, after))
        plain.append(now - was)
    # t(5) = 2.571 at 97.5 %, times sqrt(6 / 5) = 2.816 normal deviations: a tail of 0.00243.
    low, high = np.quantile(plain, (0.00243, 1 - 0.00243))
    assert got.low_S[0] == pytest.approx(low, abs=0.03)
    assert got.high_S[0] == pytest.approx(high, abs=0.03)


def test_pooled_ratios_of_classes_are_averaged_and_sites_stay_apart() -> None:
    before = Ratio(np.array([[1.0, 0.0], [2.0, 4.0], [3.0, 1.0]]), np.full((3, 2), 4.0))
    after = Ratio(np.array([[3.0, 0.0], [2.0, 4.0], [1.0, 1.0]]), np.full((3, 2), 4.0))
    plain = paired.paired_ratio_bootstrap(before, after, [0, 1, 2], resamples=50)
    by_class = paired.paired_ratio_bootstrap(
        before, after, [0, 1, 2], strata=["x", "x", "y"], resamples=50
    )
    assert plain.value_S == pytest.approx([0.0, 0.0], abs=1e-12)
    assert by_class.value_S == pytest.approx([((5 - 3) / 8 + (1 - 3) / 4) / 2, 0.0])
    assert by_class.low_S[1] == by_class.high_S[1] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="expected 2 units"):
        paired.paired_ratio_bootstrap(before, after, [0, 1])
