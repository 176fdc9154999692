"""EXIF turns of photos, masks and points: 1 is upright, 6 shown turned clockwise by a quarter."""

from __future__ import annotations

import numpy as np
from PIL import Image

UPRIGHT = 1
_SWAP = (5, 6, 7, 8)  # width and height change places
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNS = (UPRIGHT, *_TRANSPOSES)


def turn_image(image: Image.Image, turn: int) -> Image.Image:
    """A stored photo as it is shown."""
    return image if turn == UPRIGHT else image.transpose(_TRANSPOSES[turn])


def turn_size(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """(width, height) after the turn; the same turn leads back."""
    return (size[1], size[0]) if turn in _SWAP else size


def turn_mask(mask_HW: np.ndarray, turn: int) -> np.ndarray:
    """A mask of the stored photo, on the photo as it is shown."""
    if turn in _SWAP:
        mask_HW = mask_HW.swapaxes(0, 1)
    flip_y, flip_x = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return np.ascontiguousarray(mask_HW[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def turn_points(xy_K2: np.ndarray, turn: int, size: tuple[int, int]) -> np.ndarray:
    """Points (x, y) of a stored photo of `size` (width, height), on the photo as it is shown."""
    xy_K2 = np.array(xy_K2, dtype=np.float64)
    if turn in _SWAP:
        xy_K2 = xy_K2[:, ::-1]
    width, height = turn_size(size, turn)
    if turn in (2, 3, 6, 7):
        xy_K2 = np.stack([width - 1 - xy_K2[:, 0], xy_K2[:, 1]], axis=1)
    if turn in (3, 4, 7, 8):
        xy_K2 = np.stack([xy_K2[:, 0], height - 1 - xy_K2[:, 1]], axis=1)
    return xy_K2
