"""Macro, micro, unparsed and histograms against hand-made counts; intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kvfix.eval.mcq.accuracy import Question, score, wilson


def questions(task: str, answers: str, letters: str) -> list[Question]:
    """`letters` with a dash where nothing was parsed and a dot where nothing was predicted."""
    return [
        Question(f"{task}_{i}", task, a, None if x in "-." else x, x == ".")
        for i, (a, x) in enumerate(zip(answers, letters, strict=True))
    ]


TWO = [*questions("Jars", "AABB", "AB-A"), *questions("Lids", "CC", "C.")]


def test_macro_is_over_tasks_and_micro_over_questions() -> None:
    found = score(TWO)
    assert found.macro.value == (1 / 4 + 1 / 2) / 2
    assert found.all.accuracy.value == 2 / 6
    assert list(found.tasks) == ["Jars", "Lids"]
    assert found.tasks["Jars"].accuracy.value == 1 / 4 and found.tasks["Lids"].n == 2


def test_unparsed_and_missing_are_counted_and_wrong() -> None:
    found = score(TWO)
    assert (found.all.correct, found.all.unparsed, found.all.missing) == (2, 2, 1)
    assert found.tasks["Jars"].unparsed == 1 and found.tasks["Jars"].missing == 0
    assert found.all.letters == {"A": 2, "B": 1, "C": 1, "unparsed": 2}
    assert found.all.answers == {"A": 2, "B": 2, "C": 2}
    assert found.tasks["Lids"].letters == {"C": 1, "unparsed": 1}


def test_macro_does_not_depend_on_the_order_of_tasks() -> None:
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point.
    tasks = [questions(f"T{i}", "A" * 10, "A" * i + "B" * (10 - i)) for i in (1, 2, 3)]
    forward = score([q for t in tasks for q in t])
    backward = score([q for t in reversed(tasks) for q in t])
    assert forward.macro.value == backward.macro.value == pytest.approx(0.2, abs=1e-15)


def test_a_question_twice_or_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="Jars_0 2 times"):
        score([*TWO, TWO[0]])
    with pytest.raises(ValueError, match="at least one question"):
        score([])


def test_wilson_equals_scipy_and_has_width_at_the_ends() -> None:
    for correct, n in ((0, 12), (5, 12), (12, 12), (61, 122)):
        reference = stats.binomtest(correct, n).proportion_ci(method="wilson")
        found = wilson(correct, n)
        assert found.value == correct / n
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
        assert found.low <= found.value <= found.high and found.high - found.low > 0.05
    assert math.isnan(wilson(1, 1).low)


def test_one_question_has_no_interval() -> None:
    found = score(questions("Jars", "A", "A"))
    assert found.macro.value == 1.0 and math.isnan(found.macro.low)
    assert math.isnan(found.all.accuracy.high)


def test_intervals_resample_within_tasks() -> None:
    """Macro's variance is that of a mean of independent task accuracies, whatever their sizes."""
    many = [
        *questions("Jars", "A" * 400, "AB" * 200),
        *questions("Lids", "A" * 25, "A" * 5 + "B" * 20),
    ]
    found = score(many)
    macro_sd = np.sqrt(0.25 / 400 + 0.16 / 25) / 2
    micro_sd = np.sqrt(0.25 * 400 + 0.16 * 25) / 425
    assert (found.macro.high - found.macro.low) / 3.92 == pytest.approx(macro_sd, rel=0.05)
    micro = found.all.accuracy
    assert (micro.high - micro.low) / 3.92 == pytest.approx(micro_sd, rel=0.05)
    assert score(many) == found and score(many, seed=1).macro != found.macro
