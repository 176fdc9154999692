"""Commands on data of which one unit fails inside the model: it is left out, whoever raised it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import blink_files
import numpy as np
import pytest
import trees
from commands import call
from PIL import Image

from kvfix import ranks
from kvfix.data.scenes.units import scene_units
from kvfix.diagnose.keys import run as diagnose_keys
from kvfix.diagnose.keys.statistics import BadKeys
from kvfix.diagnose.prefix import run as diagnose_prefix
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.session import Part

THIN = (60, 2)  # pixels: one that the readers take, and LLaVA-OneVision's grid has no token for
WHY = "expected an image that fills at least one image token"


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


def _questions(folder: Path, numbers: list[int], *, thin: int | None = None) -> Path:
    rows = [blink_files.row("Counting", n) for n in numbers]
    for row, number in zip(rows, numbers, strict=True):
        if number == thin:
            row["image_1"] = {"bytes": blink_files.encoded(9, size=THIN), "path": None}
    blink_files.write(folder / "BLINK/Counting/val-00000-of-00001.parquet", rows)
    return folder


def _run(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def _without_files(row: dict[str, Any]) -> dict[str, Any]:
    """The names of a question's images hold their folder."""
    return {key: value for key, value in row.items() if key != "images"}


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples" / name).read_text().splitlines()]


def test_a_question_that_the_model_cannot_read_is_left_out_of_its_batch(
    model: Path, tmp_path: Path
) -> None:
    words = ("eval", "--model", model, "--site", "value")
    numbers = list(range(24))
    bad = _questions(tmp_path / "bad", numbers, thin=5)
    good = _questions(tmp_path / "good", [n for n in range(8) if n != 5])
    ended = call(*words, "--data", f"blink={bad}", "--out", tmp_path / "run")
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err
    run = _run(tmp_path / "run")
    [entry] = run["left_out"]  # once, although answering and reading out both failed
    assert entry["id"] == "val_Counting_5" and entry["dataset"] == "blink"
    for words_ in (f"{bad}/BLINK/Counting", "row 5", "image 1", WHY, "2 x 60"):
        assert words_ in entry["why"]
    assert f"left out val_Counting_5: {entry['why']}" in ended.err
    # The others of its batch of eight answer as a batch of seven does, to the last bit.
    ended = call(*words, "--data", f"blink={good}", "--out", tmp_path / "seven")
    assert ended.code == 0, ended.err
    seven = [_without_files(r) for r in _rows(tmp_path / "seven", "mcq.blink.jsonl")]
    rows = _rows(tmp_path / "run", "mcq.blink.jsonl")
    mine = {r["id"]: _without_files(r) for r in rows}
    assert [mine[r["id"]] for r in seven] == seven and len(mine) == 24
    # A second start answers nothing again.
    before = (tmp_path / "run/samples/mcq.blink.jsonl").read_bytes()
    again = call(*words, "--data", f"blink={bad}", "--out", tmp_path / "run")
    assert again.code == 0 and _run(tmp_path / "run")["left_out"] == run["left_out"]
    assert (tmp_path / "run/samples/mcq.blink.jsonl").read_bytes() == before


def test_more_than_five_percent_end_the_run_with_1(model: Path, tmp_path: Path) -> None:
    data = _questions(tmp_path, list(range(8)), thin=5)
    ended = call("eval", "--model", model, "--data", f"blink={data}", "--out", tmp_path / "run")
    assert ended.code == 1 and "expected at most 5 %" in ended.error
    assert _run(tmp_path / "run")["complete"]


def test_data_that_no_unit_of_can_be_read_by_the_model_ends_the_run(
    model: Path, tmp_path: Path
) -> None:
    rows = [blink_files.row("Counting", n) for n in range(9)]
    for row in rows:
        row["image_1"] = {"bytes": blink_files.encoded(9, size=THIN), "path": None}
    blink_files.write(tmp_path / "BLINK/Counting/val-00000-of-00001.parquet", rows)
    ended = call("eval", "--model", model, "--data", f"blink={tmp_path}", "--out", tmp_path / "run")
    assert ended.code == 1 and WHY in ended.error
    assert "The first 3 units failed alike" in ended.error
    assert not list((tmp_path / "run/samples").glob("*.jsonl"))


@pytest.fixture
def expressions(tmp_path: Path) -> Path:
    """RefCOCO with 24 sentences, of which one is about a picture that the model cannot read."""
    box = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
    names = ("cow", "dog", "cat", "box")
    rows = [trees.refcoco_row(f"p{k}.jpg", box, [names[k % 4]], k) for k in range(24)]
    thin = io.BytesIO()
    Image.fromarray(np.full((2, 60, 3), 99, np.uint8)).save(thin, "PNG")
    rows[3]["image"] = {"bytes": thin.getvalue(), "path": None}
    rows[3]["segmentation"] = [0.0, 0.0, 30.0, 0.0, 30.0, 2.0, 0.0, 2.0]
    trees.parquet(tmp_path / "data/testA-00000-of-00001.parquet", rows)
    return tmp_path


def test_a_diagnosis_leaves_it_out_of_flow_and_prefix_and_their_controls(
    model: Path, expressions: Path
) -> None:
    out = expressions / "run"
    words = ("--only", "flow", "--only", "prefix", "--data", f"refcoco={expressions}")
    ended = call("diagnose", "--model", model, *words, "--out", out)
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err
    run = _run(out)
    [entry] = run["left_out"]
    assert entry["id"] == "testA-00003-0" and WHY in entry["why"] and "row 3" in entry["why"]
    controls = {str(r["control"]) for r in run["results"]}
    assert {"None", "random_weights", "prefix correct - wrong"} <= controls
    everyone = [r["n"] for r in run["results"] if r["control"] != "random_weights"]
    reporting = [r["n"] for r in run["results"] if r["control"] == "random_weights"]
    assert set(everyone) == {23} and set(reporting) == {12}
    [prefix] = run["prefix"]
    assert set(prefix["orders"]) == {"none", "correct", "wrong", "neutral"}


# --- image keys ------------------------------------------------------------------------------


class _Watch:
    def say(self, text: str) -> None:
        pass

    def phase(self, name: str, total: int) -> Any:
        from contextlib import nullcontext

        return nullcontext(lambda task: None)


def test_a_unit_that_cannot_be_read_is_listed_by_the_key_diagnosis_itself() -> None:
    units = scene_units("semantic_segmentation", n=40)

    def load(i: int) -> object:
        if i == 2:
            raise RuntimeError("no pixels")
        return units.load(i)

    shown, listing = diagnose_keys._images([replace(units, load=load)])
    assert len(shown) == 39 and not listing.too_many_left_out
    [entry] = listing.left_out
    assert (entry["id"], entry["why"]) == (units.ids[2], "RuntimeError: no pixels")


@pytest.mark.parametrize("what", ["images", "episodes", "questions", "names"])
def test_ranks_which_read_different_units_are_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = scene_units("foreground_segmentation", n=4)
    reads = {
        "images": lambda: diagnose_keys._images([units]),
        "episodes": lambda: diagnose_keys._episodes([units], 32, Part()),
        "questions": lambda: diagnose_keys._askable([], None, (2, 2), McqProtocol(), 4, Part()),  # type: ignore[arg-type]
        "names": lambda: diagnose_prefix._names(units),
    }
    reads[what]()
    monkeypatch.setattr(ranks, "everyone", lambda mine: [mine, "others"])
    with pytest.raises(ValueError, match=f"expected the same {what}.* on every rank, found others"):
        reads[what]()


def test_an_image_whose_keys_are_not_finite_is_left_out_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = scene_units("semantic_segmentation", n=40)
    shown, _ = diagnose_keys._images([units])
    counts: list[int] = []

    def find(mlm: object, squares: list[Image.Image], *, bad: int, **_: object) -> str:
        counts.append(len(squares))
        if len(counts) <= bad:
            raise BadKeys(1)
        return "found"

    def run(bad: int) -> Part:
        counts.clear()
        part = Part()
        monkeypatch.setattr(diagnose_keys, "find_keys", partial(find, bad=bad))
        found = diagnose_keys._find(list(shown), part, None, 32, "scenes", 0, _Watch())  # type: ignore[arg-type]
        assert found == "found"  # type: ignore[comparison-overlap]
        return part

    assert not run(0).left_out
    part = run(2)
    assert [e["id"] for e in part.left_out] == [units.ids[1], units.ids[2]] and len(counts) == 3
    assert "expected finite keys" in part.left_out[0]["why"]
    with pytest.raises(BadKeys):
        run(3)  # 3 of 40 are more than 5 %
