"""ImageNet-S: class ids of 16 bits, names, subsets, and what a broken tree says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from kvfix.data.catalog import check, load_units, notes
from kvfix.data.readers.imagenet_names import NAMES
from kvfix.data.units import BadUnit, Sentence, UnitSet

FIFTY = sorted(NAMES)[::20]  # some 50 classes; the first is n01440764, tench
LIST = "ImageNetS_categories_im50.txt"


@pytest.fixture
def fifty(tmp_path: Path) -> Path:
    return trees.imagenet_s(tmp_path / "ImageNetS50", {**dict.fromkeys(FIFTY, 1), FIFTY[0]: 3})


def _part(root: Path, classes: list[str]) -> Path:
    """A part of the subset with its official list, which is in no order."""
    ids = {w: i for i, w in enumerate(sorted(FIFTY), start=1)}
    trees.imagenet_s(root, dict.fromkeys(classes, 1), ids=ids)
    (root / LIST).write_text("\n".join(reversed(FIFTY)) + "\n")
    return root


def _units(folder: Path) -> UnitSet:
    (units,) = load_units([f"imagenet_s={folder}"])
    return units


def _sentence(units: UnitSet, name: str) -> Sentence:
    unit = units.load(units.ids.index(name))
    assert isinstance(unit, Sentence)
    return unit


def test_names_are_those_of_imagenet() -> None:
    assert len(NAMES) == 1000 and list(NAMES) == sorted(NAMES)
    assert NAMES["n01440764"] == "tench" and NAMES["n15075141"] == "toilet tissue"
    assert NAMES["n02119789"] == "kit fox" and NAMES["n02951585"] == "can opener"
    assert NAMES["n02012849"] == NAMES["n03126707"] == "crane"


def test_an_image_asks_for_its_class_by_name(fifty: Path) -> None:
    units = _units(fifty)
    assert (units.task, units.split, units.cluster) == (
        "semantic_segmentation",
        "validation (50 classes)",
        "image",
    )
    assert len(units) == 52
    sentence = _sentence(units, "n01440764/ILSVRC2012_val_00000002")
    assert sentence.text == "tench" and sentence.category == "n01440764"
    assert sentence.cluster == sentence.id
    expected = np.zeros((trees.HEIGHT, trees.WIDTH), np.uint8)
    expected[0], expected[5:15, 5:17] = 255, 1
    assert sentence.mask.dtype == np.uint8 and (sentence.mask == expected).all()
    assert sentence.image.mode == "RGB" and abs(np.asarray(sentence.image).mean() - 40) < 2
    assert _units(fifty.parent).ids == units.ids and check(f"imagenet_s={fifty}") == []


def test_ids_above_255_are_two_bytes(tmp_path: Path) -> None:
    names = sorted(NAMES)[:300]
    root = trees.imagenet_s(tmp_path / "ImageNetS300", dict.fromkeys(names, 1))
    units = _units(root)
    for k in (0, 254, 255, 256, 299):  # class ids 1, 255, 256, 257, 300
        mask_HW = _sentence(units, f"{names[k]}/ILSVRC2012_val_00000000").mask
        assert (mask_HW == 1).sum() == 100 and (mask_HW == 255).sum() == trees.WIDTH
    ids = np.full((trees.HEIGHT, trees.WIDTH), 44, np.int64)  # 300 in 8 bits
    trees.class_map(root / f"validation-segmentation/{names[299]}/ILSVRC2012_val_00000000.png", ids)
    with pytest.raises(BadUnit, match=r"expected class id 300 \(n\d+\), found 44"):
        _sentence(units, f"{names[299]}/ILSVRC2012_val_00000000")


def test_a_limit_keeps_many_classes(fifty: Path) -> None:
    units = _units(fifty)
    some = [i.split("/")[0] for i in units.ids[:50]]
    assert len(set(some)) == 50 and some != sorted(some)
    assert {i.split("/")[0] for i in units.ids[50:]} == {FIFTY[0]}


def test_a_part_needs_the_official_list(tmp_path: Path) -> None:
    some = [FIFTY[49], FIFTY[7]]
    root = _part(tmp_path / "ImageNetS50", some)
    units = _units(root)
    assert len(units) == 2 and check(f"imagenet_s={root}") == []
    assert (_sentence(units, f"{FIFTY[49]}/ILSVRC2012_val_00000000").mask == 1).any()
    said = notes(f"imagenet_s={root}")
    assert said[0] == "2 images of 2 of 50 classes" and "752" in said[1]
    (root / LIST).rename(root.parent / LIST)  # beside the subset will do
    assert _units(root).ids == units.ids
    (root.parent / LIST).unlink()
    with pytest.raises(ValueError, match=rf"expected 50 class folders, found 2; .*{LIST}"):
        _units(root)
    assert LIST in check(f"imagenet_s={root}")[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [("\n".join(FIFTY[:49]), "found 49 lines"), ("\n".join([*FIFTY[:49], "n1"]), "found no n")],
)
def test_another_list_is_refused(tmp_path: Path, text: str, says: str) -> None:
    root = _part(tmp_path / "ImageNetS50", [FIFTY[49]])
    (root / LIST).write_text(text)
    if says == "found 49 lines":
        shutil.move(root / "validation" / FIFTY[49], root / "validation" / FIFTY[0])
    with pytest.raises(ValueError, match=rf"{LIST}: expected the 50 classes .*{says}"):
        _units(root)


def test_wrong_folders_are_named(tmp_path: Path, fifty: Path) -> None:
    for missing, says in ((tmp_path / "none", "no such folder"), (fifty / LIST, "no such folder")):
        with pytest.raises(FileNotFoundError, match=says):
            _units(missing)
    shutil.copytree(fifty, tmp_path / "ImageNetS300")
    with pytest.raises(ValueError, match="expected one subset, found ImageNetS50, ImageNetS300"):
        _units(tmp_path)
    with pytest.raises(ValueError, match="expected 300 class folders, found 50"):
        _units(tmp_path / "ImageNetS300")
    (fifty / "validation/goldfish").mkdir()
    with pytest.raises(ValueError, match="goldfish: expected a folder of an ImageNet class"):
        _units(fifty)
    shutil.rmtree(fifty / "validation-segmentation")
    with pytest.raises(FileNotFoundError, match="validation-segmentation"):
        _units(fifty)


_P = "n01440764/ILSVRC2012_val_00000000"


def _ids(root: Path, value: int) -> None:
    trees.class_map(
        root / f"validation-segmentation/{_P}.png",
        np.full((trees.HEIGHT, trees.WIDTH), value, np.int64),
    )


def _blue(root: Path) -> None:
    image = np.full((trees.HEIGHT, trees.WIDTH, 3), 1, np.uint8)
    Image.fromarray(image).save(root / f"validation-segmentation/{_P}.png")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / f"validation-segmentation/{_P}.png").unlink(), [".png", "a mask"]),
        (lambda d: (d / f"validation/{_P}.JPEG").write_bytes(b"x"), [".JPEG", "1 bytes"]),
        (lambda d: trees.photo(d / f"validation/{_P}.JPEG", 3, (9, 9)), [".png", "9 x 9"]),
        (lambda d: _ids(d, 51), ["ids 0 to 50 or 1000", "found 51"]),
        (lambda d: _ids(d, 2), ["class id 1 (n01440764)", "found 2"]),
        (lambda d: _ids(d, 1000), ["class id 1 (n01440764)", "found 1000"]),
        (_blue, ["values in B"]),
        (
            lambda d: trees.mask(
                d / f"validation-segmentation/{_P}.png", np.ones((trees.HEIGHT, trees.WIDTH))
            ),
            ["mode RGB", "found P"],
        ),
    ],
)
def test_a_broken_image_is_left_out_with_one_line(
    fifty: Path, harm: Callable[[Path], object], words: list[str]
) -> None:
    harm(fifty)
    units = _units(fifty)
    with pytest.raises(BadUnit) as caught:
        _sentence(units, _P)
    (problem,) = check(f"imagenet_s={fifty}")
    assert problem == str(caught.value) and "\n" not in problem and _P in problem
    assert all(word in problem for word in words)
    assert _sentence(units, f"{FIFTY[1]}/ILSVRC2012_val_00000000").text == NAMES[FIFTY[1]]


def test_a_mask_without_photo_is_said(fifty: Path) -> None:
    (fifty / f"validation/{_P}.JPEG").unlink()
    (problem,) = check(f"imagenet_s={fifty}")
    assert f"{_P}.JPEG: expected a photo for every mask" in problem
    assert len(_units(fifty)) == 51


def test_no_photo_is_read_to_make_the_set(fifty: Path) -> None:
    for path in fifty.rglob("*.JPEG"):
        path.write_bytes(b"not a photo")
    assert len(_units(fifty)) == 52
