"""What blocking says of units that it could not ask."""

from __future__ import annotations

import pytest

from kvfix.diagnose.keys.blocking import CONDITIONS, Effects, effect_record
from kvfix.diagnose.keys.findings import effect_finding


def record(*, skipped: int) -> dict:
    effects = Effects("accuracy by log-probability", "question", skipped=skipped)
    for i in range(8):
        for c in CONDITIONS:
            effects.scores[c].append(float(c == "chosen" or i % 2))
        effects.clusters.append(f"q{i}")
    return effect_record(effects, queries="text", chosen="input-agnostic keys", seed=0)


def test_a_planted_effect_is_clear_and_paired() -> None:
    got = record(skipped=0)
    assert got["differences"]["chosen_random"]["value"] == pytest.approx(0.5)
    assert got["differences"]["chosen_random"]["clear"] and got["nothing_is_base"]
    text = effect_finding(got, dataset="scenes").text
    assert "0.500 -> 1.000" in text and "Left out" not in text


def test_questions_on_another_grid_are_counted_in_the_sentence() -> None:
    text = effect_finding(record(skipped=3), dataset="scenes").text
    assert "Left out: 3 questions whose images lie on another grid" in text
