"""`kvfix score pascal5i`, `imagenet_s` and `msrc`: folders of mask images, through the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from scored import figures, pngs, rows, score

from kvfix.data.readers import episodes, pascal
from kvfix.data.readers.imagenet_names import NAMES
from kvfix.data.readers.pascal import pascal_truths


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few = partial(episodes.draw_episodes, episodes=3)
    monkeypatch.setattr(pascal, "draw_episodes", few)
    return trees.pascal(tmp_path / "VOC2012", trees.PASCAL_SHOWN)


def truths(voc: Path) -> dict[str, pascal.QueryTruth]:
    found = pascal_truths(voc)
    return {name: found.load(i) for i, name in enumerate(found.units.ids)}


def shifted(mask_HW: np.ndarray) -> np.ndarray:
    """The object moved by a third of its width, bool."""
    return np.roll(mask_HW == 1, 66, axis=1)


def test_pascal_perfect_masks_score_one_whatever_void_pixels_say(voc: Path, tmp_path: Path) -> None:
    masks = {name: t.mask > 0 for name, t in truths(voc).items()}  # void called foreground
    record = figures("pascal5i", pngs(tmp_path / "pred", masks), voc)
    n_classes = {0: 2, 1: 1, 2: 1, 3: 1}
    expected = {fold: n / 5 for fold, n in n_classes.items()}  # the other classes are absent
    by_part = {(r["part"], r["metric"]): r for r in record["results"]}
    for fold, miou in expected.items():
        assert by_part[f"fold {fold}", "mIoU"]["value"] == pytest.approx(miou, abs=1e-15)
        assert by_part[f"fold {fold}", "FB-IoU"]["value"] == 1.0
    assert record["figures"] == pytest.approx({"mIoU": 1 / 4, "FB-IoU": 1.0})
    low, high = by_part[None, "mIoU"]["ci"]
    assert low <= 1 / 4 <= high <= 1 / 4 + 1e-12
    assert by_part[None, "FB-IoU"]["n"] == len(masks) == 12
    assert any("fold 1: no episode of car, cat, chair, cow" in note for note in record["notes"])


def test_pascal_pools_each_class_and_both_sides_of_each_fold(voc: Path, tmp_path: Path) -> None:
    found = truths(voc)
    masks = {name: shifted(t.mask) for name, t in found.items()}
    empty = [name for name in found if name.startswith("fold0-0001")]
    assert found[empty[0]].label == 1
    masks[empty[0]] = np.zeros((400, 400), bool)
    out = tmp_path / "out"
    record = figures("pascal5i", pngs(tmp_path / "pred", masks), voc, "--out", out)
    counts: dict[int, np.ndarray] = {}
    sides: dict[int, np.ndarray] = {}
    for name, truth in found.items():
        valid, true, mine = truth.mask != 255, truth.mask == 1, masks[name]
        both = np.array([(mine & true & valid).sum(), ((mine | true) & valid).sum()])
        back = np.array([(~mine & ~true & valid).sum(), ((~mine | ~true) & valid).sum()])
        counts[truth.label] = counts.get(truth.label, 0) + both
        fold = (truth.label - 1) // 5
        sides[fold] = sides.get(fold, 0) + np.stack((both, back))
    miou = sum(i / u for i, u in counts.values()) / 20
    fb = np.mean([(s[:, 0] / s[:, 1]).mean() for s in sides.values()])
    assert record["figures"]["mIoU"] == pytest.approx(miou, abs=1e-15)
    assert record["figures"]["FB-IoU"] == pytest.approx(fb, abs=1e-15)
    assert record["classes"]["aeroplane"] == counts[1][0] / counts[1][1]
    first = {r["id"]: r for r in rows(out)}[empty[0]]
    assert (first["inter"], first["score"], first["category"]) == (0, 0.0, "aeroplane")
    assert first["cluster"] == found[empty[0]].query and first["fold"] == 0
    for row in record["results"]:
        if row["ci"] is not None:
            assert row["ci"][0] <= row["value"] + 1e-12 and row["value"] <= row["ci"][1] + 1e-12


def test_pascal_binary_forms_and_class_maps_agree(voc: Path, tmp_path: Path) -> None:
    found = truths(voc)
    masks = {name: shifted(t.mask) for name, t in found.items()}
    forms = {
        "bool": (masks, ()),
        "white": ({n: m.astype(np.uint8) * 255 for n, m in masks.items()}, ()),
        "ones": ({n: m.astype(np.uint8) for n, m in masks.items()}, ()),
    }
    records = [
        figures("pascal5i", pngs(tmp_path / name, images), voc, *more)["figures"]
        for name, (images, more) in forms.items()
    ]
    maps = {n: np.where(m, found[n].label, 7).astype(np.uint8) for n, m in masks.items()}
    for name, labels in maps.items():
        trees.mask(tmp_path / "maps" / f"{name}.png", labels)
    records.append(figures("pascal5i", tmp_path / "maps", voc, "--class-maps")["figures"])
    assert all(r == records[0] for r in records)
    done = score("pascal5i", tmp_path / "maps", voc)
    assert done.code == 1 and "maps of VOC class ids need --class-maps" in done.error


def test_pascal_missing_and_wrong_masks(voc: Path, tmp_path: Path) -> None:
    found = truths(voc)
    masks = {name: shifted(t.mask) for name, t in found.items()}
    pred = pngs(tmp_path / "pred", masks | {"stray": np.zeros((4, 4), bool)})
    name = next(iter(masks))
    (pred / f"{name}.png").unlink()
    done = score("pascal5i", pred, voc)
    assert done.code == 1 and "expected at least 95 % of 12 predictions, found 11" in done.error
    record = json.loads(done.out)
    assert record["missing"] == [name] and record["unknown"] == ["stray"] and record["n"] == 12
    pngs(pred, {name: np.zeros((375, 500), bool)})
    done = score("pascal5i", pred, voc)
    assert f"{name}.png: expected 400 x 400 pixels like the truth, found 500 x 375" in done.error
    (pred / f"{name}.png").write_bytes(b"rubbish")
    done = score("pascal5i", pred, voc)
    assert done.code == 1 and f"{name}.png: expected a mask, found 7 bytes" in done.error
    done = score("pascal5i", tmp_path / "nowhere", voc)
    assert done.code == 1 and "expected a folder of masks, found no such folder" in done.error
    done = score("pascal5i", pngs(tmp_path / "other", {"x": masks[name]}), voc)
    assert done.code == 1 and f"expected masks such as {name}.png, found x.png" in done.error


# ImageNet-S: three images of two of the subset's classes, by the official list.
FIFTY = sorted(NAMES)[::20]
FIRST, SECOND = FIFTY[1], FIFTY[30]


@pytest.fixture
def imagenet_s(tmp_path: Path) -> Path:
    root = tmp_path / "ImageNetS50"
    ids = {w: i for i, w in enumerate(FIFTY, start=1)}
    assert len(FIFTY) == 50 and (ids[FIRST], ids[SECOND]) == (2, 31)
    trees.imagenet_s(root, {FIRST: 2, SECOND: 1}, ids=ids)
    (root / "ImageNetS_categories_im50.txt").write_text("\n".join(FIFTY) + "\n")
    return root


def blank() -> np.ndarray:
    return np.zeros((trees.HEIGHT, trees.WIDTH), np.int64)


def test_imagenet_s_pools_with_background_and_marks_a_subset(
    imagenet_s: Path, tmp_path: Path
) -> None:
    # Blocks of 10 x 10 (image 0) and 10 x 11 (image 1) pixels; row 0 of the truth is ignored.
    right, wrong, other = blank(), blank(), blank()
    right[5:15, 5:15] = 2
    right[0] = 49  # ignored there
    wrong[5:15, 5:16] = 31  # another class
    other[5:15, 5:10] = 31  # half of it
    pred = tmp_path / "pred"
    name = "ILSVRC2012_val_0000000"
    for path, labels in (
        (f"{FIRST}/{name}0", right),
        (f"{FIRST}/{name}1", wrong),
        (f"{SECOND}/{name}0", other),
    ):
        trees.class_map(pred / f"{path}.png", labels)
    out = tmp_path / "out"
    record = figures("imagenet_s", pred, imagenet_s, "--out", out)
    valid = trees.WIDTH * (trees.HEIGHT - 1)
    back = (3 * valid - 100 - 110 - 100) / (3 * valid - 100 - 110 - 50)
    first, second = 100 / (100 + 110), 50 / (110 + 100)
    assert record["classes"]["background"] == back
    assert (record["classes"][FIRST], record["classes"][SECOND]) == (first, second)
    assert record["value"] == pytest.approx((back + first + second) / 51, abs=1e-15)
    assert len(record["classes"]) == 51 and len(record["absent"]) == 48
    assert any("48 of 51 classes are absent" in note for note in record["notes"])
    low, high = record["ci"]
    assert 0 <= low <= record["value"] <= high <= 3 / 51
    by_id = {r["id"]: r for r in rows(out)}
    row = by_id[f"{FIRST}/{name}1"]
    assert (row["category"], row["score"], row["cluster"]) == (FIRST, 0.0, row["id"])
    assert row["classes"][FIRST] == row["classes"][SECOND] == [0, 110] and "inter" not in row


def test_imagenet_s_refuses_other_encodings(imagenet_s: Path, tmp_path: Path) -> None:
    pred = tmp_path / "pred"
    name = f"{FIRST}/ILSVRC2012_val_00000000"
    path = trees.class_map(pred / f"{name}.png", blank() + 51)
    done = score("imagenet_s", pred, imagenet_s)
    assert "expected class ids R + 256 * G of 0 to 50, found 51" in done.error
    Image.fromarray(blank().astype(np.uint8)).save(path)
    done = score("imagenet_s", pred, imagenet_s)
    assert done.code == 1 and "expected a mask of mode RGB or RGBA, found L" in done.error
    trees.class_map(path, blank()[:-1])
    assert "expected 32 x 24 pixels like the truth" in score("imagenet_s", pred, imagenet_s).error
    trees.class_map(path, blank())
    done = score("imagenet_s", pred, imagenet_s)
    assert done.code == 1 and "expected at least 95 % of 3 predictions, found 1" in done.error
    assert json.loads(done.out)["n"] == 3


# MSRC: a group's objects are 15 x 10 pixels, column k of image k.


@pytest.fixture
def msrc(tmp_path: Path) -> Path:
    return trees.msrc(tmp_path / "MSRC", {"cow": 2, "bird": 3})


def soft(k: int, *, top: int = 5) -> np.ndarray:
    out = np.zeros((trees.HEIGHT, trees.WIDTH), np.uint8)
    out[top:20, k : k + 10] = 255
    out[0, :] = 127  # a soft edge: background
    return out


def test_msrc_averages_images_then_groups(msrc: Path, tmp_path: Path) -> None:
    masks = {f"bird/5_{k}_s": soft(k) for k in range(3)}
    masks |= {"cow/5_0_s": soft(0, top=10), "cow/5_1_s": soft(20)}
    out = tmp_path / "out"
    record = figures("msrc", pngs(tmp_path / "pred", masks), msrc, "--out", out)
    size = trees.WIDTH * trees.HEIGHT
    cow_j = (100 / 150 + 0) / 2
    cow_p = ((size - 50) / size + (size - 300) / size) / 2
    assert record["figures"] == pytest.approx({"J": (1 + cow_j) / 2, "P": (1 + cow_p) / 2})
    assert record["groups"]["cow"] == pytest.approx({"jaccard": cow_j, "precision": cow_p})
    low, high = record["ci"]
    assert low <= record["value"] <= high <= 1
    [bird, cow] = sorted(rows(out), key=lambda r: r["id"])
    assert (bird["score"], cow["cluster"], cow["metric"]) == (1.0, "cow", "J")
    assert cow["images"] == pytest.approx({"5_0_s": 100 / 150, "5_1_s": 0.0})


def test_msrc_takes_bitmaps_ones_and_colours_of_grey(msrc: Path, tmp_path: Path) -> None:
    masks = {f"bird/5_{k}_s": soft(k) for k in range(3)}
    masks |= {f"cow/5_{k}_s": soft(k) for k in range(2)}
    whole = figures("msrc", pngs(tmp_path / "a", masks), msrc)["figures"]
    assert whole == {"J": 1.0, "P": 1.0}
    colours = {n: np.stack([m] * 3, axis=-1) for n, m in masks.items()}
    assert figures("msrc", pngs(tmp_path / "b", colours, suffix=".bmp"), msrc)["figures"] == whole
    ones = {n: (m > 127).astype(np.uint8) for n, m in masks.items()}
    assert figures("msrc", pngs(tmp_path / "c", ones), msrc)["figures"] == whole


def test_msrc_counts_missing_images_not_groups(msrc: Path, tmp_path: Path) -> None:
    masks = {f"bird/5_{k}_s": soft(k) for k in range(3)} | {"cow/5_0_s": soft(0)}
    done = score("msrc", pngs(tmp_path / "pred", masks), msrc)
    assert done.code == 1 and "expected at least 95 % of 5 predictions, found 4" in done.error
    record = json.loads(done.out)
    assert record["missing"] == ["cow/5_1_s"] and record["value"] == (1 + 0.5) / 2
    pngs(tmp_path / "pred", {"cow/5_1_s": soft(1)[:5]})
    assert "expected 32 x 24 pixels" in score("msrc", tmp_path / "pred", msrc).error
    pngs(tmp_path / "pred", {"cow/5_1_s": soft(1)}, suffix=".bmp")
    assert "expected one mask of this name" in score("msrc", tmp_path / "pred", msrc).error
