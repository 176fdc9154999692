"""Masks and matching points of a record in kvfix's own form, checked against the photos' size.

    "masks": [{"image": 0, "label": "cow", "size": [H, W], "counts": "..."}],
    "points": [{"image_a": 0, "image_b": 1, "a": [x, y], "b": [x, y]}]

Masks are COCO run lengths of the photo as it lies on disk, points are in its pixels, pixel centres
at integers. Where EXIF turns the photo, they are turned with it (a mask of the turned photo's size
is taken as it is). Each function raises a ValueError that says what was expected and found.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from kvfix.data.json_object import list_field, text_field
from kvfix.data.pictures.rle import check_rle
from kvfix.data.training.conversation import Match, RleMask
from kvfix.data.training.photos import Photo
from kvfix.wording import shown


def read_masks(value: object, n_images: int) -> tuple[RleMask, ...]:
    """The masks of a record of `n_images`."""
    return tuple(_mask(m, n_images) for m in list_field(value, "masks"))


def read_points(value: object, n_images: int) -> tuple[Match, ...]:
    """The matching points of a record of `n_images`."""
    return tuple(_match(m, n_images) for m in list_field(value, "points"))


def check_regions(
    photos: Sequence[Photo], masks: Sequence[RleMask], points: Sequence[Match]
) -> None:
    """Masks are as large as their photos, and points lie on them; headers alone are read."""
    header_of = cache(lambda image: photos[image].header())
    for mask in masks:
        header, (height, width) = header_of(mask.image), mask.size
        if header.turn_of((width, height)) is None:
            width, height = header.stored
            raise ValueError(
                f"masks: expected size [{height}, {width}] of {photos[mask.image].name}, found "
                f"{list(mask.size)}"
            )
    for match in points:
        for image, (x, y) in ((match.image_a, match.a), (match.image_b, match.b)):
            width, height = header_of(image).stored
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise ValueError(
                    f"points: expected x, y within the {width} x {height} pixels of "
                    f"{photos[image].name}, found {x:g}, {y:g}"
                )


def _fields(value: object, key: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError(
            f"expected {key} as objects of {', '.join(sorted(names))}, found {shown(value)}"
        )
    return value


def _index(value: object, key: str, n_images: int) -> int:
    if type(value) is not int or not 0 <= value < n_images:
        raise ValueError(
            f"expected {key}, an index below {n_images} (from 0), found {shown(value)}"
        )
    return value


def _mask(value: object, n_images: int) -> RleMask:
    fields = _fields(value, "masks", {"image", "label", "size", "counts"})
    size, counts = fields["size"], fields["counts"]
    if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int for n in size):
        raise ValueError(f"masks: expected size [height, width], found {shown(size)}")
    if not isinstance(counts, (str, list)):
        raise ValueError(f"masks: expected counts, COCO run lengths, found {shown(counts)}")
    try:
        check_rle((size[0], size[1]), counts)
    except ValueError as error:
        raise ValueError(f"masks: {error}") from error
    return RleMask(
        _index(fields["image"], "masks' image", n_images),
        text_field(fields["label"], "masks' label"),
        (size[0], size[1]),
        counts if isinstance(counts, str) else tuple(counts),
    )


def _match(value: object, n_images: int) -> Match:
    fields = _fields(value, "points", {"image_a", "image_b", "a", "b"})
    return Match(
        _index(fields["image_a"], "points' image_a", n_images),
        _index(fields["image_b"], "points' image_b", n_images),
        _xy(fields["a"]),
        _xy(fields["b"]),
    )


def _xy(value: Any) -> tuple[float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
        raise ValueError(f"points: expected [x, y] in pixels, found {shown(value)}")
    return float(numbers[0]), float(numbers[1])
