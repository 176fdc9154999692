"""MSRC groups: soft masks, mixed suffixes, and what a broken group says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from places import SHARED

from kvfix.data.catalog import check, load_units
from kvfix.data.units import BadUnit, Group, UnitSet

DATA = SHARED / "data"


@pytest.fixture
def msrc(tmp_path: Path) -> Path:
    return trees.msrc(tmp_path / "MSRC", {"cow": 3, "bird": 12})


def _units(folder: Path) -> UnitSet:
    (units,) = load_units([f"msrc={folder}"])
    return units


def _group(units: UnitSet, index: int) -> Group:
    unit = units.load(index)
    assert isinstance(unit, Group)
    return unit


def _truth(k: int) -> np.ndarray:
    out = np.zeros((trees.HEIGHT, trees.WIDTH), np.uint8)
    out[5:20, k : k + 10] = 1  # row 4 is 127, row 19 is 128
    return out


def test_a_group_is_a_folder_and_128_is_foreground(msrc: Path) -> None:
    units = _units(msrc)
    assert (units.task, units.dataset, units.cluster) == ("cosegmentation", "msrc", "group")
    assert units.ids == ("bird", "cow")
    group = _group(units, 1)
    assert group.id == group.cluster == "cow" and len(group.images) == len(group.masks) == 3
    for k, (image, mask_HW) in enumerate(zip(group.images, group.masks, strict=True)):
        assert image.mode == "RGB" and abs(np.asarray(image).mean() - 20 - 10 * k) < 2
        assert mask_HW.dtype == np.uint8 and (mask_HW == _truth(k)).all()
    assert _units(msrc.parent).sha256 == units.sha256


def test_photo_and_mask_match_whatever_their_suffixes(tmp_path: Path) -> None:
    root = trees.msrc(tmp_path / "MSRC", {"cow": 2}, suffix=".jpg")
    (root / "cow/5_0_s.jpg").rename(root / "cow/5_0_s.JPG")
    (root / "cow/Thumbs.db").write_bytes(b"x")
    for path in (root / "cow/GroundTruth").iterdir():
        paletted = Image.open(path).convert("L").convert("P")
        path.unlink()
        paletted.save(path.with_suffix(".png"))
    group = _group(_units(root), 0)
    assert all((m == _truth(k)).all() for k, m in enumerate(group.masks))
    assert check(f"msrc={root}") == []


def _grey(path: Path, value: tuple[int, int, int]) -> None:
    image = np.zeros((trees.HEIGHT, trees.WIDTH, 3), np.uint8)
    image[5:9, 5:9] = value
    Image.fromarray(image).save(path)


_T = "cow/GroundTruth/5_1_s.bmp"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / _T).unlink(), ["GroundTruth/5_1_s", "expected a mask"]),
        (lambda d: (d / "cow/5_1_s.bmp").unlink(), ["cow/5_1_s", "photo for the mask"]),
        (lambda d: (d / _T).write_bytes(b"BM"), ["5_1_s.bmp", "no known format"]),
        (
            lambda d: (d / "cow/5_1_s.bmp").write_bytes((d / "cow/5_1_s.bmp").read_bytes()[:-99]),
            ["5_1_s.bmp", "broken file"],
        ),
        (lambda d: Image.new("L", (9, 9)).save(d / _T), [_T, "32 x 24", "9 x 9"]),
        (lambda d: _grey(d / _T, (1, 1, 1)), [_T, "multiplied by 255"]),
        (lambda d: _grey(d / _T, (0, 255, 0)), [_T, "found colours"]),
        (lambda d: shutil.copy(d / _T, d / "cow/5_1_s.png"), ["5_1_s.png", "5_1_s.bmp too"]),
        (
            lambda d: [p.unlink() for k in (0, 1) for p in d.glob(f"cow/**/5_{k}_s.bmp")],
            ["cow", "at least 2 photos, found 1"],
        ),
    ],
)
def test_a_broken_group_is_left_out_with_one_line(
    msrc: Path, harm: Callable[[Path], object], words: list[str]
) -> None:
    harm(msrc)
    units = _units(msrc)
    with pytest.raises(BadUnit) as caught:
        units.load(1)
    problems = check(f"msrc={msrc}")
    assert problems == [str(caught.value)] and "\n" not in problems[0]
    assert all(word in problems[0] for word in words)
    assert len(_group(units, 0).images) == 12


def test_what_check_adds(msrc: Path) -> None:
    _grey(msrc / _T, (0, 0, 0))
    trees.photo(msrc / "dog/1.jpg", 3)
    problems = check(f"msrc={msrc}")
    assert len(problems) == 2
    assert "dog: expected the group's masks in GroundTruth" in problems[0]
    assert "5_1_s.bmp: expected the group's object, found background only" in problems[1]
    assert not _group(_units(msrc), 1).masks[1].any()  # an image may lack the object


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("MSRC/cow", "found one group; pass .*MSRC"),
        ("none", "no such folder"),
        ("empty", "found none"),
    ],
)
def test_wrong_folders_are_named(msrc: Path, folder: str, says: str) -> None:
    (msrc.parent / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=says):
        _units(msrc.parent / folder)


def test_no_photo_is_read_to_make_the_set_but_masks_count(msrc: Path) -> None:
    before = _units(msrc).sha256
    photo = msrc / "cow/5_1_s.bmp"
    photo.write_bytes(bytes(photo.stat().st_size))
    assert _units(msrc).sha256 == before
    _grey(msrc / _T, (255, 255, 255))
    assert _units(msrc).sha256 != before


@pytest.mark.shared
def test_real_photos() -> None:
    units = _units(DATA)
    assert units.ids == ("cow",) and check(f"msrc={DATA / 'MSRC'}") == []
    group = _group(units, 0)
    assert len(group.images) == 10 and group.images[0].size == (320, 213)
    shares = [m.mean() for m in group.masks]
    assert min(shares) > 0.02 and max(shares) < 0.6
