"""The pixels of a decoded picture as 8-bit RGB, whatever they were stored as.

Colours. Grey, palette, CMYK, YCbCr and LAB go through Pillow's own conversion. An embedded ICC
profile is left unused, as the processors of the supported models leave it.

Transparency is composed on white, as Qwen's own pipeline does it. A picture of which nothing can be
seen is no picture.

Numbers wider than 8 bits are scaled by their range; Pillow alone would clip them, so that nearly
all of them become white. Integers that are not negative count from 0 to the top of the narrowest
depth of 8, 10, 12, 14 or 16 bits that holds the picture's largest value, because cameras and
scanners store 12 bits in 16; above 16 bits the largest value is white. Fractions between 0 and 1
count from 0 to 1. Any other numbers count from the smallest to the largest of the picture; what is
not a number is black, infinite values are the ends.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_DEPTHS = (8, 10, 12, 14, 16)  # bits
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # what one step of a PNG's 2 or 4 bits becomes in 8
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_WHITE = (255, 255, 255)
_CHUNK = 2**20  # pixels that are scaled at once


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, decoded; a ValueError if nothing can be seen of it."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_key(image: Image.Image) -> None:
    """Bring the value that a PNG calls transparent to 8 bits; only before it is decoded."""
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    raw_mode = tiles[0].args if tiles else None
    if isinstance(key, int) and isinstance(raw_mode, str):
        image.info["transparency"] = key * _GREY_STEPS.get(raw_mode, 1)
    elif isinstance(key, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (0, 0):
        raise ValueError("nothing but transparent pixels")
    canvas = Image.new("RGB", rgba.size, _WHITE)
    canvas.paste(rgba, mask=alpha)
    return canvas


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; TIFF's white-is-zero is turned over, which Pillow does for 8."""
    values_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)) in (_UNSIGNED, (_UNSIGNED,))
    if image.format == "TIFF" and image.mode == "I" and unsigned:
        values_HW = values_HW.view(np.uint32)
    grey_HW = grey_of(values_HW)
    if image.format == "TIFF" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    key = image.info.get("transparency")
    if isinstance(key, int):
        if (values_HW == key).all():
            raise ValueError("nothing but transparent pixels")
        grey_HW = np.where(values_HW == key, np.uint8(255), grey_HW)
    return Image.fromarray(grey_HW).convert("RGB")


def grey_of(values_HW: np.ndarray) -> np.ndarray:
    """Numbers as uint8 (height, width) by the rule at the top; a ValueError if none is a number."""
    whole = np.issubdtype(values_HW.dtype, np.integer)
    known_HW = None if whole else np.isfinite(values_HW)
    finite = values_HW if known_HW is None or known_HW.all() else values_HW[known_HW]
    if not finite.size:
        raise ValueError("no value that is a number")
    low, high = float(finite.min()), float(finite.max())
    if whole and low >= 0:
        tops = [float(2**bits - 1) for bits in _DEPTHS]
        low, high = 0.0, next((top for top in tops if high <= top), high)
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        return np.full(values_HW.shape, 127, np.uint8)  # one value tells nothing about a range
    grey_HW = np.empty(values_HW.shape, np.uint8)
    step = max(1, _CHUNK // values_HW.shape[1])
    for start in range(0, len(values_HW), step):
        with np.errstate(invalid="ignore"):
            share = (values_HW[start : start + step].astype(np.float64) - low) * (
                255 / (high - low)
            )
        grey_HW[start : start + step] = np.nan_to_num(share, nan=0.0).round().clip(0, 255)
    return grey_HW
