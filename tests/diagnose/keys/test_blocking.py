"""Which keys blocking draws at random, and what it says of units that it could not ask."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grids import grid_layout

from kvfix.diagnose.keys import blocking
from kvfix.diagnose.keys.blocking import CONDITIONS, Effects, conditions, effect_record
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


def test_random_keys_depend_on_the_batch_alone_not_on_those_asked_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = torch.zeros(2, 2, 6, 6, dtype=torch.bool)
    cells[..., :2] = True
    drawn: list[torch.Tensor] = []

    def hold(mlm: object, encoded: object, edits: list[Any]) -> object:
        drawn.append(edits[0].keys[0][0])
        return nullcontext()

    monkeypatch.setattr(blocking, "intervene", hold)
    spans = SimpleNamespace(layout=grid_layout((48, 48), (6, 6)))

    def draw(*batches: int, seed: int = 0) -> torch.Tensor:
        for number in batches:
            around = conditions(None, "text", cells, seed=seed, batch=number)["random"]  # type: ignore[arg-type]
            assert around is not None
            around(SimpleNamespace(images=[[spans]]))  # type: ignore[arg-type]
        return drawn[-1]

    assert torch.equal(draw(0, 1, 2), draw(2))
    assert not torch.equal(draw(1), draw(2)) and not torch.equal(draw(2), draw(2, seed=1))
