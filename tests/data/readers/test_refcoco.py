"""RefCOCO's parquet: sentences, polygons, splits, and what broken files say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image, ImageDraw
from places import SHARED

from kvfix.data.catalog import check, load_units, notes
from kvfix.data.units import BadUnit, Sentence, UnitSet

DATA = SHARED / "data"
BOX = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
NAME = "COCO_train2014_000000000009_{}.jpg"
FILE = "data/testA-00000-of-00001.parquet"


def _rows() -> list[dict]:
    triangle = [0.0, 0.0, 30.0, 0.0, 0.0, 20.0]
    return [
        trees.refcoco_row(NAME.format(11), BOX, ["the box", " left one"], 10),
        trees.refcoco_row(NAME.format(12), triangle, ["a triangle"], 10),
        trees.refcoco_row("other.jpg", BOX, ["x", "y", "z"], 50),
    ]


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    trees.parquet(tmp_path / "RefCOCO" / FILE, _rows())
    return tmp_path / "RefCOCO"


def _units(folder: Path) -> UnitSet:
    (units,) = load_units([f"refcoco={folder}"])
    return units


def _sentence(units: UnitSet, index: int) -> Sentence:
    unit = units.load(index)
    assert isinstance(unit, Sentence)
    return unit


def test_every_sentence_is_a_unit_and_photos_cluster(refcoco: Path) -> None:
    units = _units(refcoco)
    assert (units.task, units.split, units.cluster) == ("referring_segmentation", "testA", "image")
    assert units.ids == tuple(
        f"testA-{row:05d}-{k}" for row, n in enumerate((2, 1, 3)) for k in range(n)
    )
    sentences = [_sentence(units, i) for i in range(6)]
    assert [s.text for s in sentences] == ["the box", "left one", "a triangle", "x", "y", "z"]
    photo = "COCO_train2014_000000000009"  # without the object's number
    assert [s.cluster for s in sentences] == [photo] * 3 + ["other"] * 3
    assert [abs(np.asarray(s.image).mean() - 30) < 2 for s in sentences] == [True] * 3 + [False] * 3
    assert check(f"refcoco={refcoco}") == []
    assert notes(f"refcoco={refcoco}")[0] == "testA: 3 objects, 6 sentences"


def test_polygons_are_filled(refcoco: Path) -> None:
    units = _units(refcoco)
    box = _sentence(units, 0).mask
    assert box.dtype == np.uint8 and box.shape == (trees.HEIGHT, trees.WIDTH)
    expected = np.zeros_like(box)
    expected[2:12, 4:20] = 1
    assert (box == expected).all()
    triangle = _sentence(units, 2).mask
    assert abs(int(triangle.sum()) - 300) < 20 and triangle[0, 0] and not triangle[-1, -1]


def test_units_come_in_any_order(refcoco: Path) -> None:
    units = _units(refcoco)
    texts = {i: _sentence(units, i).text for i in (5, 0, 3, 3, 2, 4, 1)}
    assert texts == {0: "the box", 1: "left one", 2: "a triangle", 3: "x", 4: "y", 5: "z"}


def test_memory_holds_one_row_group(tmp_path: Path) -> None:
    import pyarrow

    size = 2_000_000
    rows = [trees.refcoco_row(f"{i}.jpg", BOX, ["x"]) for i in range(12)]
    for row in rows:
        row["image"]["bytes"] += os.urandom(size)  # Pillow ignores what follows the image
    trees.parquet(tmp_path / FILE, rows, group=2)
    del rows, row
    units, before = _units(tmp_path), pyarrow.total_allocated_bytes()
    for i in range(12):
        _sentence(units, i)
        assert pyarrow.total_allocated_bytes() - before < 3 * 2 * size  # of 12 in the file


@pytest.mark.parametrize(
    "path",
    [
        FILE,
        "testA-00000-of-00001-0a1b2c.parquet",
        "testA.parquet",
        "testA/0000.parquet",
        "default/testA/0000.parquet",
    ],
)
def test_the_forms_of_the_hub(tmp_path: Path, path: str) -> None:
    trees.parquet(tmp_path / "RefCOCO" / path, _rows())
    for folder in (tmp_path / "RefCOCO", tmp_path, tmp_path / "RefCOCO/testA"):
        units = _units(folder)
        assert (units.split, len(units)) == ("testA", 6)


def test_shards_are_one_split_and_none_may_be_missing(tmp_path: Path) -> None:
    for k in range(2):
        trees.parquet(tmp_path / f"data/testB-0000{k}-of-00002.parquet", _rows())
    units = _units(tmp_path)
    assert units.split == "testB" and len(set(units.ids)) == 12
    assert units.ids[6] == "testB-00003-0" and _sentence(units, 8).text == "a triangle"
    (tmp_path / "data/testB-00000-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="expected all 2 parts of testB, found 1"):
        _units(tmp_path)


def test_a_split_must_be_chosen_and_val_is_refused(refcoco: Path) -> None:
    for split in ("testB", "val", "test"):
        shutil.copy(refcoco / FILE, refcoco / f"data/{split}-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=r"one split.*found testA and testB; pass refcoco=.*/testA"
    ):
        _units(refcoco)
    assert check(f"refcoco={refcoco}") == []  # both can be checked at once
    assert _units(refcoco / "testB").ids[0] == "testB-00000-0"
    assert len(notes(f"refcoco={refcoco}")) == 4
    with pytest.raises(ValueError, match=r"val mixes the UNC and Google splits.*testA or testB"):
        _units(refcoco / "val")
    for split in ("testA", "testB"):
        (refcoco / f"data/{split}-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"found test, val; test is Google's.*val mixes"):
        _units(refcoco)
    with pytest.raises(ValueError, match=r"expected parquet files of testA, found test, val"):
        _units(refcoco / "testA")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch /tmp/kvfix_owned'\ntR.")
    for folder, says in ((tmp_path, "pickles"), (tmp_path / "no", "no such folder")):
        with pytest.raises(FileNotFoundError, match=says):
            _units(folder)
    (tmp_path / "refs(unc).p").unlink()
    with pytest.raises(FileNotFoundError, match="found none"):
        _units(tmp_path)
    (tmp_path / "data-00000.arrow").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="to_parquet"):
        _units(tmp_path)


def _big(value: float) -> list[float]:
    return [0.0, 0.0, value, 0.0, value, value]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"segmentation": [1.0, 2.0, 3.0, 4.0]}, ["3 or more points", "found 4 numbers"]),
        ({"segmentation": None}, ["segmentation", "found 0 numbers"]),
        ({"segmentation": [float("nan")] * 6}, ["segmentation"]),
        ({"segmentation": _big(2.0e9)}, ["within 32 x 24", "another size"]),
        ({"segmentation": _big(-9.0)}, ["within 32 x 24"]),
        ({"segmentation": [1.0] * 6}, ["without a pixel"]),
        ({"answer": ["ok", " "]}, ["a sentence in answer", "' '"]),
        ({"image": {"bytes": None, "path": "a.jpg"}}, ["photo's bytes", "found none"]),
        ({"image": {"bytes": b"\xff\xd8broken", "path": None}}, ["an image", "8 bytes of no"]),
        ({"file_name": None}, ["file_name", "None"]),
    ],
)
def test_a_broken_row_is_left_out_with_one_line(
    tmp_path: Path, cells: dict, words: list[str]
) -> None:
    first = {**_rows()[0], "answer": ["fine", "too"]}
    trees.parquet(tmp_path / FILE, [first, {**_rows()[0], **cells}])
    units = _units(tmp_path)
    assert len(units) == 4 and _sentence(units, 1).text == "too"
    with pytest.raises(BadUnit) as caught:
        units.load(3)
    problems = check(f"refcoco={tmp_path}")
    assert str(caught.value) in problems and "\n" not in problems[0]
    for word in ("testA-00000-of-00001.parquet: row 1: expected", "found", *words):
        assert word in str(caught.value)


def test_a_row_without_sentences_is_said(tmp_path: Path) -> None:
    trees.parquet(tmp_path / FILE, [*_rows(), {**_rows()[0], "answer": []}])
    assert len(_units(tmp_path)) == 6
    (problem,) = check(f"refcoco={tmp_path}")
    assert "row 3: expected sentences in answer, found none" in problem
    trees.parquet(tmp_path / FILE, [{**_rows()[0], "answer": []}])
    with pytest.raises(ValueError, match="expected sentences in testA, found none"):
        _units(tmp_path)


def test_files_of_another_form_are_refused(refcoco: Path) -> None:
    path = refcoco / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected a parquet file, found a broken one"):
        _units(refcoco)
    rows = [{k: v for k, v in row.items() if k != "segmentation"} for row in _rows()]
    trees.parquet(path, rows)
    with pytest.raises(ValueError, match="found no segmentation among question_id"):
        _units(refcoco)
    assert "found no segmentation" in check(f"refcoco={refcoco}")[0]


def test_digests_see_text_but_are_the_same_twice(refcoco: Path) -> None:
    before = _units(refcoco).sha256
    assert _units(refcoco).sha256 == before
    rows = _rows()
    rows[1]["answer"] = ["a trianglo"]
    trees.parquet(refcoco / FILE, rows)
    assert _units(refcoco).sha256 != before


@pytest.mark.shared
def test_real_photos() -> None:
    import pyarrow.parquet

    units = _units(DATA / "RefCOCO")
    assert (units.split, len(units)) == ("testA", 148) and check(f"refcoco={DATA}") == []
    table = pyarrow.parquet.read_table(next((DATA / "RefCOCO").glob("*.parquet")))
    for i in (0, 1, 70, 147):
        sentence = _sentence(units, i)
        row = int(units.ids[i].split("-")[1])
        cells = {c: table[c][row].as_py() for c in ("answer", "segmentation", "bbox", "file_name")}
        assert sentence.text == cells["answer"][int(units.ids[i].split("-")[2])]
        assert sentence.cluster == Path(cells["file_name"]).stem
        drawn = Image.new("1", sentence.image.size)
        ImageDraw.Draw(drawn).polygon(cells["segmentation"], fill=1)
        truth = np.asarray(drawn)
        assert (truth & (sentence.mask == 1)).sum() / (truth | (sentence.mask == 1)).sum() > 0.9
        x, y, width, height = cells["bbox"]
        rows, columns = np.nonzero(sentence.mask)
        assert abs(columns.min() - x) <= 1.5 and abs(columns.max() + 1 - x - width) <= 1.5
        assert abs(rows.min() - y) <= 1.5 and abs(rows.max() + 1 - y - height) <= 1.5
