"""A photo that EXIF turns, in every reader: upright, and its mask or points turned with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from PIL import Image

from kvfix.data.catalog import check, load_units
from kvfix.data.pictures.turns import turn_image, turn_mask, turn_points
from kvfix.data.readers.imagenet_names import NAMES

BACK = {6: 8, 8: 6}  # the turn that undoes another; every other undoes itself
SWAPPED = (3, 6)  # one turn that keeps the sides and one that changes them


def _stored(image: Image.Image, turn: int) -> bytes:
    """The file of a camera that was held otherwise: its EXIF turns it to `image`."""
    exif = Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    turn_image(image, BACK.get(turn, turn)).save(stream, "JPEG", quality=98, exif=exif)
    return stream.getvalue()


def _turn_photos(root: Path, pattern: str, turn: int) -> None:
    for path in root.rglob(pattern):
        path.write_bytes(_stored(Image.open(path).convert("RGB"), turn))


def _turn_masks(root: Path, pattern: str, turn: int) -> None:
    for path in root.rglob(pattern):
        image = Image.open(path)
        turned = Image.fromarray(turn_mask(np.asarray(image), BACK.get(turn, turn)))
        if image.mode == "P":
            turned = Image.frombytes("P", turned.size, turned.tobytes())
            turned.putpalette(image.getpalette())
        turned.save(path)


def _parts(unit: Any) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Images and their masks."""
    if hasattr(unit, "query"):
        masks = (unit.query_mask, *unit.support_masks)
        yield from zip((unit.query, *unit.support), masks, strict=True)
    elif hasattr(unit, "frames"):
        yield from zip(unit.frames, unit.masks, strict=True)
    elif hasattr(unit, "images"):
        yield from zip(unit.images, unit.masks, strict=True)
    else:
        yield unit.image, unit.mask


def _same(spec: str, upright: Path, turned: Path) -> None:
    (before,), (after,) = (load_units([f"{spec}={folder}"]) for folder in (upright, turned))
    assert not check(f"{spec}={turned}")
    for i in range(min(len(before), 3)):
        for (image, mask), (image_t, mask_t) in zip(
            _parts(before.load(i)), _parts(after.load(i)), strict=True
        ):
            assert (mask == mask_t).all() and image.size == image_t.size
            apart = np.asarray(image).astype(int) - np.asarray(image_t)
            assert np.abs(apart).mean() < 12  # JPEG twice; noise apart by a turn is 13 and more


def _davis(folder: Path) -> Path:
    return trees.davis(folder / "DAVIS")


def _pascal(folder: Path) -> Path:
    return trees.pascal(folder / "VOC2012", {"a": (1,), "b": (1, 2), "c": (1,)})


def _imagenet(folder: Path) -> Path:
    return trees.imagenet_s(folder / "ImageNetS50", dict.fromkeys(sorted(NAMES)[:50], 1))


def _msrc(folder: Path) -> Path:
    return trees.msrc(folder / "MSRC", {"cow": 3}, suffix=".jpg")


@pytest.mark.parametrize("masks_too", [True, False])
@pytest.mark.parametrize("turn", SWAPPED)
@pytest.mark.parametrize(
    ("spec", "build", "photos", "masks"),
    [
        ("davis2017", _davis, "*.jpg", "*.png"),
        ("pascal5i", _pascal, "*.jpg", "*.png"),
        ("imagenet_s", _imagenet, "*.JPEG", "*.png"),
        ("msrc", _msrc, "*.jpg", "*.bmp"),
    ],
)
def test_a_mask_turns_with_its_photo(
    spec: str,
    build: Callable[[Path], Path],
    photos: str,
    masks: str,
    turn: int,
    masks_too: bool,
    tmp_path: Path,
) -> None:
    upright, turned = build(tmp_path / "upright"), build(tmp_path / "turned")
    _turn_photos(turned, photos, turn)
    if masks_too:
        _turn_masks(turned, masks, turn)
    if not masks_too and turn == 3:
        return  # of equal sizes, masks count as those of the stored pixels
    _same(spec, upright, turned)


@pytest.mark.parametrize("turn", SWAPPED)
def test_points_and_boxes_turn_with_their_photo(turn: int, tmp_path: Path) -> None:
    upright = trees.spair(tmp_path / "a/SPair-71k", {"cat": "xyz"})
    turned = trees.spair(tmp_path / "b/SPair-71k", {"cat": "xyz"})
    _turn_photos(turned, "*.jpg", turn)
    back, size = BACK.get(turn, turn), (trees.WIDTH, trees.HEIGHT)
    for path in turned.rglob("*.json"):
        fields = json.loads(path.read_text())
        for side in ("src", "trg"):
            xy = np.array(fields[f"{side}_kps"], float)
            fields[f"{side}_kps"] = turn_points(xy, back, size).tolist()
            box = np.array(fields[f"{side}_bndbox"], float).reshape(2, 2)
            corners = turn_points(box, back, size)
            fields[f"{side}_bndbox"] = [*corners.min(0), *corners.max(0)]
            if turn == 6:
                fields[f"{side}_imsize"] = [size[1], size[0], 3]
        path.write_text(json.dumps(fields))
    assert not check(f"spair71k={turned}")
    (before,), (after,) = (load_units([f"spair71k={f}"]) for f in (upright, turned))
    for i in range(len(before)):
        one, two = before.load(i), after.load(i)
        assert (one.source_xy == two.source_xy).all() and (one.target_xy == two.target_xy).all()
        assert one.target_box == two.target_box and one.source.size == two.source.size


@pytest.mark.parametrize("turn", SWAPPED)
def test_a_polygon_turns_with_its_photo(turn: int, tmp_path: Path) -> None:
    box = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
    row = trees.refcoco_row("COCO_train2014_000000000009_1.jpg", box, ["the box"])
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    size, back = image.size, BACK.get(turn, turn)
    # Polygons have corners of pixels, half a pixel off their centres.
    points = turn_points(np.array(box).reshape(-1, 2) - 0.5, back, size) + 0.5
    bytes_ = {"bytes": _stored(image, turn), "path": None}
    file = "data/testA-00000-of-00001.parquet"
    trees.parquet(tmp_path / "a" / file, [row])
    other = {**row, "image": bytes_, "segmentation": points.ravel().tolist()}
    trees.parquet(tmp_path / "b" / file, [other])
    (before,), (after,) = (load_units([f"refcoco={tmp_path / f}"]) for f in "ab")
    one, two = before.load(0), after.load(0)
    assert one.image.size == two.image.size and (one.mask == two.mask).all()


def test_a_polygon_of_the_photo_as_it_is_shown_is_taken_where_the_other_cannot_be(
    tmp_path: Path,
) -> None:
    tall = [2.0, 20.0, 12.0, 20.0, 12.0, 30.0, 2.0, 30.0]  # beyond the 24 rows of the stored photo
    row = trees.refcoco_row("a.jpg", tall, ["the box"])
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").rotate(90, expand=True)
    row["image"] = {"bytes": _stored(image, 6), "path": None}
    trees.parquet(tmp_path / "data/testA-00000-of-00001.parquet", [row])
    (units,) = load_units([f"refcoco={tmp_path}"])
    unit = units.load(0)
    assert unit.image.size == (24, 32) and unit.mask[20:30, 2:12].all() and unit.mask.sum() == 100
