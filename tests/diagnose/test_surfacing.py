"""Planted models: what is readable and not answered is found, and chance is not mistaken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from kvfix.data.scenes.units import scene_units
from kvfix.data.units import UnitSet
from kvfix.diagnose.surfacing.findings import surfacing_finding, surfacing_result
from kvfix.diagnose.surfacing.table import Readings, align, others_right, surfacing
from kvfix.eval.mcq.run import questions_in_turn, readable
from kvfix.runs.rows import AnswerRow, ReadoutRow

N = 400


def planted(
    rng: np.random.Generator, *, readable: float, answered: float, options: int = 2, sites: int = 3
) -> Readings:
    """Questions of which site 1 reads a share right, and the model answers a share right.

    What is not read or answered on purpose is guessed.
    """
    answer_N = rng.integers(options, size=N)

    def guess(share: float) -> np.ndarray:
        return np.where(rng.random(N) < share, answer_N, rng.integers(options, size=N))

    choice_NS = np.stack([guess(readable if s == 1 else 0.0) for s in range(sites)], axis=1)
    ids = [f"q{i}" for i in range(N)]
    return Readings(ids, ids, answer_N, guess(answered) == answer_N, choice_NS, np.full(N, options))


def test_a_hand_made_table() -> None:
    found = surfacing(
        Readings(
            list("abc"),
            ["x", "x", "y"],  # too few clusters to split: every question counts
            np.array([0, 1, 0]),
            np.array([True, False, False]),
            np.array([[0, 1], [1, 1], [1, 1]]),
            np.array([2, 2, 4]),
        ),
        columns=[0, 1],
    )
    assert found.column == 0 and not found.held_out and found.n == 3
    assert found.counts == (1, 1, 0, 1)  # a: both right, b: unsurfaced, c: neither
    assert found.of_all.value == pytest.approx(1 / 3)
    assert found.of_wrong.value == pytest.approx(1 / 2)
    assert found.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)
    # b (answer 1) among the choices 0, 1 of a, c; c (answer 0) among the choices 0, 1 of a, b
    assert found.shuffled.value == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert found.beyond.value == pytest.approx(0)
    assert not found.clear and found.examples == ("b",)


def test_shuffled_features_are_every_other_questions_choice() -> None:
    rng = np.random.default_rng(0)
    choice, answer = rng.integers(3, size=7), rng.integers(3, size=7)
    naive = [np.mean([choice[j] == answer[i] for j in range(7) if j != i]) for i in range(7)]
    np.testing.assert_allclose(others_right(choice, answer), naive)
    assert np.isnan(others_right(choice[:1], answer[:1])).all()


def test_an_ignored_readable_feature_is_found_with_its_share() -> None:
    rng = np.random.default_rng(1)
    # Everything is readable and the model guesses between two: half of all is unsurfaced.
    covered = 0
    for seed in range(20):
        found = surfacing(planted(rng, readable=1.0, answered=0.0), columns=[0, 1, 2], seed=seed)
        assert found.column == 1 and found.held_out and found.clear
        assert found.of_wrong.value == 1
        covered += found.of_all.low <= 0.5 <= found.of_all.high
    assert covered >= 16  # of 20 intervals of 95 %: fewer by chance once in 2,500


@pytest.mark.parametrize("options", [2, 4])
def test_guesses_on_both_sides_show_nothing_beyond_shuffled_features(options: int) -> None:
    rng = np.random.default_rng(2)
    clear = 0
    for seed in range(40):
        questions = planted(rng, readable=0.0, answered=0.0, options=options)
        found = surfacing(questions, columns=[0, 1, 2], seed=seed)
        clear += found.clear
        assert abs(found.beyond.value) < 0.1
    assert clear <= 6  # 2 expected; more than 6 by chance once in 300


def test_a_model_that_says_what_it_reads_has_nothing_left() -> None:
    rng = np.random.default_rng(3)
    questions = planted(rng, readable=1.0, answered=0.0)
    says = questions._replace(answered_N=questions.choice_NS[:, 1] == questions.answer_N)
    found = surfacing(says, columns=[0, 1, 2])
    assert found.of_all.value == 0 and found.counts[1] == 0 and not found.examples


def test_the_site_is_not_chosen_on_the_questions_that_report() -> None:
    rng = np.random.default_rng(4)
    shares = [
        surfacing(
            planted(rng, readable=0.0, answered=0.5, sites=40), columns=range(40), seed=seed
        ).readout.value
        for seed in range(20)
    ]
    # Of 40 coins the best is right in 57 % of the questions that chose it, in 50 % of the others.
    assert abs(np.mean(shares) - 0.5) < 4 * 0.5 / np.sqrt(20 * N / 2)


def rows(ids: str) -> list[ReadoutRow]:
    sites = [("vision", None), ("value", 0), ("value", 1)]
    named = ("readout", "Art_Style", "scenes")
    return [
        ReadoutRow(i, i, *named, s, layer, None, "accuracy", 1.0, (ord(i) + (layer or 0)) % 2)
        for i in ids
        for s, layer in sites
    ]


ANSWERS = [
    AnswerRow(
        *(i, i, "mcq", "Art_Style", int(k % 3 == 0), "A", "AB"[k % 2], False),
        logprob_correct=int(k % 3 == 1),
        logprobs=(-1.0, -2.0),
    )
    for k, i in enumerate("abcdefgh")
]


def test_rows_are_aligned_by_id_and_scoring() -> None:
    readings, table = align(rows("hgfedcx"), ANSWERS, "generation")
    assert readings.ids == list("hgfedc")  # x was not answered, a and b not read out
    assert readings.answer_N.tolist() == [1, 0, 1, 0, 1, 0]
    assert readings.answered_N.tolist() == [False, True, False, False, True, False]
    likely, _ = align(rows("hgfedcx"), ANSWERS, "logprob")
    assert likely.answered_N.tolist() == [True, False, False, True, False, False]
    assert [table.sites[c].layer for c in table.columns("value")] == [0, 1]
    with pytest.raises(ValueError, match="scoring: expected one of generation, logprob"):
        align(rows("a"), ANSWERS, "loud")
    with pytest.raises(ValueError, match="every site"):
        align(rows("ab")[:-1], ANSWERS, "logprob")


def test_what_does_not_exist_is_null_in_the_record() -> None:
    right = [replace(a, correct=1) for a in ANSWERS]  # no wrong answer to take a share of
    readings, table = align(rows("abcdefgh"), right, "generation")
    found = surfacing(readings, columns=table.columns("value"))
    names = {"dataset": "scenes", "subtask": "Art_Style", "scoring": "generation"}
    record = surfacing_result(found, table, **names)
    assert record["of_wrong"] == {"value": None, "ci": None}
    assert "in none of the wrong answers" in surfacing_finding(found, table, **names).text
    json.dumps(record, allow_nan=False)


def test_record_and_sentence_carry_every_number() -> None:
    readings, table = align(rows("abcdefgh"), ANSWERS, "generation")
    found = surfacing(readings, columns=table.columns("value"))
    names = {"dataset": "scenes", "subtask": "Art_Style", "scoring": "generation"}
    record = surfacing_result(found, table, **names)
    assert record["site"] == "value" and record["layer"] in (0, 1) and record["held_out"]
    assert sum(record["counts"].values()) == record["n"] == found.n
    assert record["of_all"] == {"value": found.of_all.value, "ci": found.of_all.ci}
    finding = surfacing_finding(found, table, **names).to_json()
    assert (
        finding["text"].startswith("Art Style: in ")
        and f"of {found.n} questions" in finding["text"]
    )
    assert finding["value"] == found.of_all.value and finding["clear"] == found.clear


def listed(*tasks: str) -> UnitSet:
    """Questions of some subtasks, one subtask after the other, as benchmarks list them."""
    ids = tuple(f"val_{task}_{i}" for task in tasks for i in range(10))
    named = tuple(task for task in tasks for _ in range(10))
    none = cast(Any, lambda i: None)
    return UnitSet("mcq", "blink", "val", ids, none, subtasks=named)


def test_a_limit_takes_of_every_readable_subtask_in_turn() -> None:
    units = listed("Art_Style", "Counting", "Visual_Similarity", "Jigsaw")
    assert [units.ids[i].rsplit("_", 1)[0] for i in questions_in_turn(units)[:4]] == [
        "val_Art_Style",
        "val_Counting",
        "val_Visual_Similarity",
        "val_Jigsaw",
    ]
    assert readable(units, 5).ids == (
        *(f"val_Art_Style_{i}" for i in range(3)),
        *(f"val_Visual_Similarity_{i}" for i in range(2)),
    )
    assert len(readable(units)) == 20
    scenes = scene_units("mcq", n=40)  # in turn already: nothing changes
    assert questions_in_turn(scenes) == list(range(40))


def test_a_site_chosen_elsewhere_reports_on_every_question() -> None:
    rng = np.random.default_rng(5)
    questions = planted(rng, readable=1.0, answered=0.0)
    found = surfacing(questions, columns=[1], chosen=True)
    assert found.n == N and found.column == 1 and found.held_out
    half = surfacing(questions, columns=[0, 1, 2])
    assert set(half.ids) < set(found.ids) and half.n == len(half.ids) == N // 2


def test_a_trained_readout_is_called_one() -> None:
    readings, table = align(rows("abcdefgh"), ANSWERS, "generation")
    found = surfacing(readings, columns=table.columns("value"), chosen=True)
    names = {"dataset": "scenes", "subtask": "Art_Style", "scoring": "generation"}
    said = surfacing_finding(found, table, **names, trained="linear, on 48 questions")
    said = said.to_json()
    assert "the trained readout of value layer" in said["text"]
    assert "(linear, on 48 questions)" in said["text"]
    assert said["id"] == "surfacing_trained.generation"
