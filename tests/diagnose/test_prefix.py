"""Prefixes: equal length, in front of the image, and a difference that is paired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from curves import rows

from kvfix.data.scenes.units import scene_units
from kvfix.data.units import BadUnit, Unit
from kvfix.diagnose.prefix.findings import (
    CONTRASTS,
    PrefixRuns,
    prefix_findings,
    prefix_results,
)
from kvfix.diagnose.prefix.run import run_prefixes
from kvfix.diagnose.prefix.texts import CONDITIONS, NoContrast, named, prefixes
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun, run_task
from kvfix.mlm.load import load_mlm


def words(text: str) -> int:
    """A tokenizer that knows words and full stops."""
    return len(text.replace(".", " . ").split())


def test_the_three_texts_have_one_length_and_say_different_things() -> None:
    found = prefixes(words, "cat", ["big red dog", "cat", "old cow", "cat"])
    assert "cat" in found.correct and "old cow" in found.wrong  # the closest other in length
    assert "cat" not in found.neutral and "cow" not in found.neutral
    assert {words(t) for t in (found.correct, found.wrong, found.neutral)} == {found.tokens}
    assert found.text("none") is None and found.text("wrong") == found.wrong


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(NoContrast, match="a name other than 'cat'"):
        prefixes(words, "cat", ["cat"])
    with pytest.raises(NoContrast, match="filler"):
        prefixes(lambda text: sum(w in text for w in ("big", "dog", "cat")), "cat", ["big dog"])


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "llava_next"])
def test_a_real_model_reads_the_prefix_before_the_image(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    units = scene_units("referring_segmentation", n=3)
    ticks: list[str] = []
    found = run_prefixes(units, mlm, tmp_path, tick=ticks.append)
    assert len(ticks) == len(CONDITIONS) * len(units)
    assert {len(list(run.rows)) for run in found.runs.values()} == {3 * mlm.n_layers}
    name = named(units.load(0))
    said = {c: found.orders[c].partition("image")[0] for c in CONDITIONS}  # before a placeholder
    assert name in found.orders["none"] and f"Look for: {name}" in found.orders["correct"]
    assert "Look for" not in said["none"] and all("Look for" in said[c] for c in CONDITIONS[1:])
    plain = run_task(
        units, MlmSource(mlm, kinds=["value"], position=False), tmp_path, control="plain"
    )
    scores = {c: [r.score for r in run.rows] for c, run in found.runs.items()}
    assert scores["none"] == [r.score for r in plain.rows]
    assert scores["correct"] != scores["none"]


def test_units_already_scored_without_a_prefix_are_not_scored_again(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    mlm = load_mlm(str(checkpoint("llava_onevision")))
    units = scene_units("semantic_segmentation", n=3)
    alone = run_prefixes(units, mlm, tmp_path / "alone")
    everything = MlmSource(mlm, heads=True)
    run_task(units.head(2), everything, tmp_path / "run")  # an interrupted run: one unit lacks
    run_prefixes(units.head(3), mlm, tmp_path / "run")
    taken = "semantic_segmentation.prefix_none.jsonl"
    assert (tmp_path / "run/samples" / taken).exists()
    run_task(units, everything, tmp_path / "whole")
    ticks: list[str] = []
    found = run_prefixes(units, mlm, tmp_path / "whole", tick=ticks.append)
    assert not (tmp_path / "whole/samples" / taken).exists()
    assert len(ticks) == len(CONDITIONS) * len(units)
    assert prefix_results(found) == prefix_results(alone)
    assert prefix_findings(found) == prefix_findings(alone)


def test_a_unit_that_cannot_be_read_is_left_out_and_loses_nothing(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    mlm = load_mlm(str(checkpoint("llava_onevision")))
    units = scene_units("semantic_segmentation", n=4)

    def broken(index: int) -> Unit:
        if index == 0:
            raise BadUnit("photo.jpg: expected a picture, found none")
        return units.load(index)

    found = run_prefixes(replace(units, load=broken), mlm, tmp_path)
    for run in found.runs.values():
        assert [e["id"] for e in run.left_out] == [units.ids[0]]
        assert {r.id for r in run.rows} == set(units.ids[1:])
    with pytest.raises(NoContrast, match="can be read, found none"):
        run_prefixes(replace(units.head(1), load=broken), mlm, tmp_path / "none")


def runs_of(scores: dict[str, np.ndarray]) -> PrefixRuns:
    units = replace(scene_units("semantic_segmentation", n=1))
    # Layer 0 lies before any attention: the best there is, and no text moves it.
    top = np.full(len(next(iter(scores.values()))), 2.0)
    runs = {
        c: TaskRun(units, rows({("value", 0): top, ("value", 1): s}), []) for c, s in scores.items()
    }
    return PrefixRuns(runs, {}, (4, 4))


def _control(finding: dict) -> str:
    return finding["id"].replace("prefix.", "prefix ").replace("_", " - ")


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=64)  # units differ far more than conditions do
    found = runs_of(
        {
            "none": hard,
            "correct": hard + 0.1 + 0.01 * rng.normal(size=64),
            "wrong": hard,
            "neutral": hard,
        }
    )
    by = {r["control"]: r for r in prefix_results(found) if r["layer"] == 1}
    assert len(by) == len(CONTRASTS)
    assert by["prefix correct - neutral"]["value"] == pytest.approx(0.1, abs=0.01)
    low, high = by["prefix correct - neutral"]["ci"]
    assert 0.09 < low < high < 0.11
    assert by["prefix neutral - none"]["ci"] == [0, 0]
    clear = {f.id: f.clear for f in prefix_findings(found)}
    assert clear["prefix.correct_wrong"] and not clear["prefix.neutral_none"]
    for finding in (f.to_json() for f in prefix_findings(found)):
        assert finding["layer"] == 1 and finding["mean_over_layers"]["n"] == 64 > finding["n"]
        assert finding["mean_over_layers"]["value"] == by[_control(finding)]["value"]


def test_units_without_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoContrast, match="name what they show"):
        run_prefixes(scene_units("temporal_correspondence", n=1), None, tmp_path)  # type: ignore[arg-type]
