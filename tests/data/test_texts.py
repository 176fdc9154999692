"""Texts and names out of data: what no model can be asked, and what no file can be called."""

from __future__ import annotations

import json
from pathlib import Path

import blink_files
import pytest
import tiny
import trees

from kvfix.data.catalog import check, load_units
from kvfix.data.texts import PLACEHOLDERS, bounded, check_text
from kvfix.data.units import BadUnit


def test_no_family_has_another_placeholder(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    for family in tiny.FAMILIES:
        folder = tiny.build(family, tmp_path / family)
        processor = AutoProcessor.from_pretrained(folder)
        assert set(processor.all_special_multimodal_tokens) <= set(PLACEHOLDERS)


@pytest.mark.parametrize("field", ["question", "prompt", "choices"])
@pytest.mark.parametrize("token", PLACEHOLDERS)
def test_a_placeholder_in_a_question_leaves_it_out_and_check_finds_it(
    field: str, token: str, tmp_path: Path
) -> None:
    text = f"What is in {token}?"
    bad = blink_files.row("Counting", 1, **{field: [text, "b"] if field == "choices" else text})
    rows = [blink_files.row("Counting", 0), bad]
    blink_files.write(tmp_path / "BLINK/Counting/val-00000-of-00001.parquet", rows)
    (units,) = load_units([f"blink={tmp_path}"], questions=True)
    units.load(0)
    with pytest.raises(BadUnit, match="found it in the text") as caught:
        units.load(1)
    for words in ("row 1", field, f"without {token}"):
        assert words in str(caught.value)
    assert check(f"blink={tmp_path}") == [str(caught.value)]


def test_a_placeholder_in_an_expression_leaves_it_out_and_check_finds_it(tmp_path: Path) -> None:
    box = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0]
    row = trees.refcoco_row("a.jpg", box, ["the box", "the <image> box"])
    trees.parquet(tmp_path / "data/testA-00000-of-00001.parquet", [row])
    (units,) = load_units([f"refcoco={tmp_path}"])
    units.load(0)
    with pytest.raises(BadUnit, match="expected answer without <image>"):
        units.load(1)
    assert len(check(f"refcoco={tmp_path}")) == 1


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(BadUnit, match="at most 100,000 characters, found 50,000,000"):
        check_text("x" * 50_000_000, "here", "question")
    for value in (None, 3, " ", ["a"]):
        with pytest.raises(BadUnit, match="here: expected question, a text, found"):
            check_text(value, "here", "question")


def test_a_name_that_no_file_can_have_is_cut_and_stays_apart_from_others() -> None:
    assert bounded("a" * 255) == "a" * 255 and bounded("é" * 127) == "é" * 127
    long = [f"000001-{'x' * n}-b:cat" for n in (300, 301, 50_000_000)]
    cut = [bounded(name) for name in long]
    assert len(set(cut)) == 3 and all(len(c) < 120 for c in cut)
    assert all(c.startswith("000001-x") and c.endswith("-b:cat") for c in cut)


@pytest.mark.parametrize("length", [300, 50_000_000])
def test_a_line_of_a_list_without_end_leaves_out_its_unit(length: int, tmp_path: Path) -> None:
    davis = trees.davis(tmp_path / "DAVIS")
    path = davis / "ImageSets/2017/val.txt"
    path.write_text(path.read_text() + "x" * length + "\n")
    (units,) = load_units([f"davis2017={davis}"])
    assert len(units) == 3 and all(len(name) < 120 for name in units.ids)
    units.load(0)
    with pytest.raises(BadUnit) as caught:
        units.load(2)
    assert len(str(caught.value)) < 700
    assert [p for p in check(f"davis2017={davis}") if len(p) > 700] == []


@pytest.mark.parametrize("length", [300, 2_000_000])
def test_a_photos_name_without_end_in_an_annotation_leaves_out_the_pair(
    length: int, tmp_path: Path
) -> None:
    root = trees.spair(tmp_path / "SPair-71k", {"cat": "xyz"})
    path = sorted(root.rglob("*.json"))[0]
    fields = json.loads(path.read_text())
    fields["src_imname"] = "x" * length + ".jpg"
    path.write_text(json.dumps(fields))
    (units,) = load_units([f"spair71k={root}"])
    with pytest.raises(BadUnit) as caught:
        units.load(units.ids.index(path.stem))
    assert len(str(caught.value)) < 700 and "File name too long" in str(caught.value)
    assert all(len(line) < 700 for line in check(f"spair71k={root}"))


def test_ids_without_end_stay_short(tmp_path: Path) -> None:
    rows = [blink_files.row("Counting", n) for n in range(2)]
    rows[1]["idx"] = "val_Counting_" + "9" * 1_000_000
    rows[1]["answer"] = "z" * 1_000_000
    rows[1]["sub_task"] = "w" * 1_000_000
    blink_files.write(tmp_path / "BLINK/Counting/val-00000-of-00001.parquet", rows)
    (units,) = load_units([f"blink={tmp_path}"], questions=True)
    assert all(len(name) < 120 for name in units.ids)
    with pytest.raises(BadUnit) as caught:
        units.load(1)
    assert len(str(caught.value)) < 700
