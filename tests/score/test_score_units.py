"""`kvfix score spair` and `refcoco`: predictions as JSON lines, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from places import SHARED
from scored import figures, jsonl, rle, rows, score

from kvfix.data.readers.refcoco import refcoco_sentences
from kvfix.data.units import Sentence

# SPair. The target box is 22 x 16 pixels, the photo 32 x 24: radii 2.2 and 3.2 at alpha 0.1.


@pytest.fixture
def spair(tmp_path: Path) -> Path:
    return trees.spair(tmp_path / "SPair-71k", {"cat": ["a", "b"], "dog": ["a", "d"]})


def annotation(spair: Path, pair: str) -> dict[str, Any]:
    return json.loads((spair / "PairAnnotation/test" / f"{pair}.json").read_text())


def points(spair: Path, moved: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Truths moved by (x, y), a line a pair."""
    return [
        {"pair": pair, "xy": (np.array(annotation(spair, pair)["trg_kps"]) + by).tolist()}
        for pair, by in moved.items()
    ]


MOVED: dict[str, list[tuple[float, float]]] = {
    "000001-a-b:cat": [(0, 0), (0, 2.2)],  # 2 of 2: the bound counts
    "000002-b-a:cat": [(0, 2.3), (3, 0)],  # 0 of 2 by the box, 2 of 2 by the image
    "000003-a-d:dog": [(1, 1), (9, 9)],  # 1 of 2 both ways
    "000004-d-a:dog": [(0, 0), (0, 0)],
}


def test_spair_figures_by_hand(spair: Path, tmp_path: Path) -> None:
    found = figures("spair", jsonl(tmp_path / "p.jsonl", points(spair, MOVED)), spair)
    assert found["figures"]["PCK@0.1 bbox, per image"] == (1 + 0 + 0.5 + 1) / 4 == found["value"]
    assert found["figures"]["PCK@0.1 bbox, per point"] == 5 / 8
    assert found["figures"]["PCK@0.1 img, per point"] == 7 / 8
    assert found["figures"]["PCK@0.05 bbox, per point"] == 3 / 8  # 1.1 pixels
    by_part = {(r["part"], r["metric"]): r for r in found["results"]}
    dog = by_part["dog", "PCK@0.1 bbox, per point"]
    assert (dog["value"], dog["n"], dog["cluster"]) == (3 / 4, 2, "category")
    low, high = by_part[None, "PCK@0.1 bbox, per image"]["ci"]
    assert 0 <= low <= found["value"] <= high <= 1
    assert found["missing"] == found["unknown"] == []


def test_spair_aggregations_differ_when_pairs_do(spair: Path, tmp_path: Path) -> None:
    path = spair / "PairAnnotation/test/000001-a-b:cat.json"
    fields = json.loads(path.read_text())
    fields["src_kps"], fields["trg_kps"] = fields["src_kps"][:1], fields["trg_kps"][:1]
    path.write_text(json.dumps(fields))
    moved = MOVED | {"000001-a-b:cat": [(0, 0)]}
    found = figures("spair", jsonl(tmp_path / "p.jsonl", points(spair, moved)), spair)
    assert found["figures"]["PCK@0.1 bbox, per image"] == (1 + 0 + 0.5 + 1) / 4
    assert found["figures"]["PCK@0.1 bbox, per point"] == pytest.approx(4 / 7, abs=1e-15)


def test_spair_needs_no_photo_and_names_what_is_missing(spair: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(spair / "JPEGImages")
    few = {k: v for k, v in MOVED.items() if k != "000004-d-a:dog"}
    lines = [*points(spair, few), {"pair": "000009-x-y:cow", "xy": [[0, 0]]}]
    out = tmp_path / "out"
    done = score("spair", jsonl(tmp_path / "p.jsonl", lines), spair, "--out", out)
    assert done.code == 1 and "expected at least 95 % of 4 predictions, found 3" in done.error
    found = json.loads(done.out)
    assert found["missing"] == ["000004-d-a:dog"] and found["unknown"] == ["000009-x-y:cow"]
    assert found["value"] == (1 + 0 + 0.5 + 0) / 4
    text = " ".join(done.err.split())
    assert "no prediction, counted as empty: 1 (000004-d-a:dog)" in text
    assert "predictions of no unit of this data, left out: 1 (000009-x-y:cow)" in text
    last = {r["id"]: r for r in rows(out)}["000004-d-a:dog"]
    assert last == {
        "kind": "probe",
        "id": "000004-d-a:dog",
        "cluster": "dog",
        "task": "semantic_correspondence",
        "dataset": "spair71k",
        "control": None,
        "site": None,
        "layer": None,
        "head": None,
        "metric": "PCK@0.1",
        "score": 0.0,
        "category": "dog",
        "correct": 0,
        "points": 2,
        "rows": 1,
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2]", "p.jsonl:2: expected a JSON object, found list"),
        ('{"pair": "a"', "p.jsonl:2: expected one JSON object a line"),
        ('{"id": "a", "xy": [[1, 2]]}', 'p.jsonl:2: expected "pair", a unit\'s id, found None'),
        ('{"pair": "a", "xy": [1, 2]}', 'p.jsonl:2: expected "xy": [[x, y], ...]'),
        ('{"pair": "a", "xy": [[1, NaN]]}', 'p.jsonl:2: expected "xy"'),
        ('{"pair": "a", "xy": [["a", "b"]]}', 'p.jsonl:2: expected "xy"'),
        ('{"pair": "000001-a-b:cat", "xy": [[1, 2]]}', "found 000001-a-b:cat again"),
    ],
)
def test_spair_lines_of_another_form_are_refused(
    spair: Path, tmp_path: Path, line: str, says: str
) -> None:
    path = jsonl(tmp_path / "p.jsonl", points(spair, MOVED)[:1])
    path.write_text(path.read_text() + line + "\n")
    done = score("spair", path, spair)
    assert done.code == 1 and says in done.error and done.out == ""


def test_spair_points_must_be_one_a_keypoint(spair: Path, tmp_path: Path) -> None:
    lines = points(spair, MOVED)
    lines[2]["xy"].append([0, 0])
    done = score("spair", jsonl(tmp_path / "p.jsonl", lines), spair)
    assert done.code == 1
    assert "p.jsonl: 000003-a-d:dog: expected 2 points, one a keypoint, found 3" in done.error
    done = score("spair", tmp_path / "nowhere.jsonl", spair)
    assert done.code == 1 and "nowhere.jsonl: expected predictions" in done.error
    done = score("spair", jsonl(tmp_path / "q.jsonl", [{"pair": "x", "xy": [[0, 0]]}]), spair)
    assert done.code == 1 and "expected predictions for units such as '0000" in done.error


def test_spair_a_broken_truth_is_left_out(spair: Path, tmp_path: Path) -> None:
    lines = points(spair, MOVED)
    (spair / "PairAnnotation/test/000002-b-a:cat.json").write_text("{")
    done = score("spair", jsonl(tmp_path / "p.jsonl", lines), spair)
    assert done.code == 1 and "expected a truth that can be read for at least 95 %" in done.error
    found = json.loads(done.out)
    assert [u["id"] for u in found["left_out"]] == ["000002-b-a:cat"]
    assert found["value"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-15) and found["n"] == 3


@pytest.mark.shared
@pytest.mark.parametrize("golden", ["golden_pck_offset", "golden_pck_scaled_identity"])
def test_spair_of_real_annotations(tmp_path: Path, golden: str) -> None:
    """Counts of a known predictor on five official pairs, by DIFT's rule."""
    root = SHARED / "goldens/spair71k"
    lines = []
    for path in sorted((root / "PairAnnotation/test").glob("*.json")):
        fields = json.loads(path.read_text())
        truth, source = np.array(fields["trg_kps"], float), np.array(fields["src_kps"], float)
        sizes = (np.array(fields[k][:2], float) for k in ("trg_imsize", "src_imsize"))
        scaled = source * (next(sizes) / next(sizes))
        offset = truth + np.arange(len(truth))[:, None] * np.array([7, -3])
        predicted = offset if "offset" in golden else scaled
        lines.append({"pair": path.stem, "xy": predicted.tolist()})
    found = figures("spair", jsonl(tmp_path / "p.jsonl", lines), root)["figures"]
    expected = json.loads((root / f"{golden}.json").read_text())
    for kind in ("bbox", "img"):
        for alpha in ("0.05", "0.1", "0.15"):
            for by in ("per_image", "per_point"):
                value = (
                    expected[by][f"{kind}@{alpha}"]
                    if "offset" in golden
                    else expected[f"{by}_{kind}"][alpha]
                )
                name = f"PCK@{alpha} {kind}, {by.replace('_', ' ')}"
                assert found[name] == pytest.approx(value, abs=1e-12), name


# RefCOCO: four sentences on two photos, the same box.
BOX = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    sentences = [("COCO_train2014_000000000009_1.jpg", ["a", "b"]), ("other.jpg", ["c", "d"])]
    found = [trees.refcoco_row(name, BOX, texts, 10) for name, texts in sentences]
    trees.parquet(tmp_path / "RefCOCO/data/testA-00000-of-00001.parquet", found)
    return tmp_path / "RefCOCO"


IDS = [f"testA-{row:05d}-{k}" for row in (0, 1) for k in (0, 1)]


def masks(refcoco: Path) -> dict[str, np.ndarray]:
    """The box; its left half; nothing; the box and the row of 32 pixels below the photo's top."""
    units = refcoco_sentences(refcoco)
    assert list(units.ids) == IDS
    unit = units.load(0)
    assert isinstance(unit, Sentence)
    box = unit.mask
    left, more = box.copy(), box.copy()
    left[:, 12:] = 0
    more[0] = 1
    return dict(zip(IDS, (box, left, 0 * box, more), strict=True))


def lines_of(found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{"id": name, "rle": rle(mask)} for name, mask in found.items()]


def test_refcoco_figures_by_hand(refcoco: Path, tmp_path: Path) -> None:
    found = masks(refcoco)
    area, left = int(found[IDS[0]].sum()), int(found[IDS[1]].sum())
    out = tmp_path / "out"
    record = figures("refcoco", jsonl(tmp_path / "p.jsonl", lines_of(found)), refcoco, "--out", out)
    wide = area / (area + trees.WIDTH)
    ious = [1.0, left / area, 0.0, wide]
    assert record["figures"]["cIoU"] == (area + left + 0 + area) / (4 * area + trees.WIDTH)
    assert record["figures"]["mIoU"] == pytest.approx(sum(ious) / 4, abs=1e-15)
    for bound in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert record["figures"][f"P@{bound}"] == sum(x >= bound for x in ious) / 4
    assert record["profile"] == "lisa" and record["metric"] == "cIoU"
    half = rows(out)[1]
    assert (half["inter"], half["union"], half["metric"]) == (left, area, "IoU")
    assert [r["cluster"] for r in rows(out)] == ["COCO_train2014_000000000009"] * 2 + ["other"] * 2


def test_refcoco_takes_plain_run_lengths_and_an_empty_mask_for_a_missing_one(
    refcoco: Path, tmp_path: Path
) -> None:
    found = masks(refcoco)
    lines = lines_of(found)
    flat = found[IDS[3]].T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    runs = np.diff(edges).tolist()
    lines[3]["rle"]["counts"] = runs if flat[0] == 0 else [0, *runs]
    whole = figures("refcoco", jsonl(tmp_path / "p.jsonl", lines), refcoco)
    done = score("refcoco", jsonl(tmp_path / "q.jsonl", [*lines[:2], lines[3]]), refcoco)
    assert done.code == 1 and "found 3" in done.error
    assert json.loads(done.out)["figures"] == whole["figures"]  # the third mask was empty anyway


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rle": None}, 'p.jsonl:1: expected "rle": {"size": [height, width]'),
        ({"rle": {"size": [24, 32]}}, 'p.jsonl:1: expected "rle"'),
        ({"rle": {"size": ["24", 32], "counts": "1"}}, 'p.jsonl:1: expected "rle"'),
        (
            {"rle": {"size": [32, 24], "counts": [768]}},
            "p.jsonl:1: expected a mask of 24 x 32 (height, width) like the photo, found 32 x 24",
        ),
        ({"rle": {"size": [24, 32], "counts": [700]}}, "p.jsonl:1: expected runs of 24 x 32 = 768"),
        ({"rle": {"size": [24, 32], "counts": "~~"}}, "p.jsonl:1: expected COCO's run-length text"),
        ({"id": 7}, 'p.jsonl:1: expected "id", a unit\'s id, found 7'),
    ],
)
def test_refcoco_lines_of_another_form_are_refused(
    refcoco: Path, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    lines = lines_of(masks(refcoco))
    lines[0] |= changed
    done = score("refcoco", jsonl(tmp_path / "p.jsonl", lines), refcoco)
    assert done.code == 1 and says in done.error and done.out == ""
