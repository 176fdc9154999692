"""Photos that a camera turned, with masks and points."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from pixels import file_of, photo

from kvfix.data.pictures.read import read_header, read_picture
from kvfix.data.pictures.turns import TURNS, turn_mask, turn_points, turn_size


def _turned(turn: int, size: tuple[int, int], format: str) -> bytes:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    image = Image.fromarray(((3 * x + 5 * y) % 200).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"exif": exif} if format != "TIFF" else {"tiffinfo": {0x0112: turn}}
    return file_of(image, format, **options, **({"lossless": True} if format == "WEBP" else {}))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_picture_is_upright_in_every_format(turn: int, format: str) -> None:
    data = _turned(turn, (24, 16), format)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = read_picture(data).image
    header = read_header(data)
    assert found.tobytes() == expected.tobytes() and found.size == expected.size == header.size
    assert header.stored == (24, 16) and header.turn == turn


@pytest.mark.parametrize("turn", TURNS)
def test_masks_and_points_turn_with_their_picture(turn: int) -> None:
    mask_HW = np.zeros((16, 24), np.uint8)
    mask_HW[3, 5] = 1
    data = _turned(turn, (24, 16), "PNG")
    header = read_header(data)
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.open(io.BytesIO(file_of(Image.fromarray(mask_HW), exif=exif)))
    expected_HW = np.asarray(ImageOps.exif_transpose(stored))
    found_HW = header.mask(mask_HW)
    assert (found_HW == expected_HW).all()
    (x, y), *_ = header.points(np.array([[5.0, 3.0]]))
    assert found_HW[int(y), int(x)] == 1
    assert (turn_mask(mask_HW, turn) == found_HW).all()
    assert turn_points(np.array([[5, 3]]), turn, (24, 16)).tolist() == [[x, y]]
    assert turn_size(turn_size((24, 16), turn), turn) == (24, 16)


def test_an_annotation_is_of_the_stored_pixels_unless_its_size_says_otherwise() -> None:
    header = read_header(_turned(6, (24, 16), "JPEG"))
    shown_HW = np.arange(16 * 24).reshape(24, 16)  # (height, width) of the photo as it is shown
    assert (header.mask(shown_HW) == shown_HW).all()
    assert header.points(np.array([[1.0, 2.0]]), (16, 24)).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="expected a mask of 24 x 16"):
        header.mask(np.zeros((5, 5)))
    square = read_header(_turned(6, (16, 16), "JPEG"))  # size cannot tell: stored pixels
    mask_HW = np.zeros((16, 16), np.uint8)
    mask_HW[0, 0] = 1
    assert square.mask(mask_HW)[0, 15] == 1
    half = read_header(_turned(3, (24, 16), "JPEG"))
    mask_HW = np.zeros((16, 24), np.uint8)
    mask_HW[0, 0] = 1
    assert half.mask(mask_HW)[15, 23] == 1


def test_broken_exif_leaves_the_picture_as_it_is_stored() -> None:
    data = file_of(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01")
    assert read_picture(data).image.size == (60, 40)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert read_picture(file_of(photo(), "JPEG", exif=exif)).image.size == (60, 40)
