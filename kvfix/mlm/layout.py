"""Which image token shows which part of the original image.

A layout is exact: cell centres are kept per row and per column, because grids are not always
uniform (27 patches of 14 px cover 378 of a 384 px tile, and a mosaic repeats that gap at each tile
border). How each family's processor cuts an image is in `kvfix.mlm.images`.

Shapes: H, W rows and columns of the grid; V image tokens of one image; R projector rows of one
    image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from kvfix.mlm.images.pixel_view import PixelView


class ImageSize(NamedTuple):
    """Pixels of an image."""

    height: int
    width: int


class Box(NamedTuple):
    """Corners in original pixels; x to the right, y down, (0, 0) the image's top left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


class GridPoint(NamedTuple):
    """Fractional grid coordinates; the centre of cell (r, c) is (r, c)."""

    row: np.ndarray
    col: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """The map between one image's tokens and a 2-D grid over its original pixels."""

    index_HW: Tensor  # which of this image's tokens (0..V-1, in sequence order) holds each cell
    # Which of this image's projector rows (0..R-1) holds each cell. Larger than `index_HW` where
    # the model shrinks the mosaic (anyres_max_9): resize bilinearly to `grid_hw`.
    rows_HW: Tensor
    # Original pixels spanned by the whole grid: smaller than the image after a centre crop, larger
    # where cells hold padding.
    box: Box
    ys_H: np.ndarray  # centre of each grid row, original pixels
    xs_W: np.ndarray  # centre of each grid column, original pixels
    image_hw: ImageSize  # size of the original image
    n_tokens: int  # V, all image tokens of this image, the base tile's and newlines included
    n_rows: int  # R, all rows this image puts through the projector

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.index_HW.shape[0], self.index_HW.shape[1]

    def cell_of(self, x: float | np.ndarray, y: float | np.ndarray) -> GridPoint:
        """Fractional row and column of original pixels, scalars or arrays, for bilinear sampling.

        Outside the grid they run on with the border cells' spacing.
        """
        return GridPoint(
            _fraction(self.ys_H, y, self.box[1::2]), _fraction(self.xs_W, x, self.box[::2])
        )


@dataclass(frozen=True)
class LayoutRequest:
    """What a family needs to lay out one sample's images."""

    sizes: list[tuple[int, int]]  # (height, width) of each image, original pixels
    config: Any  # the model's config
    processor: Any  # the model's processor
    grids_thw: Tensor | None = None  # qwen's `image_grid_thw` rows of these images; None for others


def placed(
    view: PixelView,
    image_hw: tuple[int, int],
    index_HW: Tensor,
    rows_HW: Tensor,
    starts_H: np.ndarray,
    starts_W: np.ndarray,
    cell_h: float,
    cell_w: float | None = None,
    *,
    n_tokens: int | None = None,
    n_rows: int | None = None,
) -> Layout:
    """Put cells (first pixel and extent, in the view) back into the original image.

    Without numbers of tokens and rows, the last cell holds the last of each.
    """
    cell_w = cell_h if cell_w is None else cell_w
    if index_HW.numel() == 0:
        raise ValueError(
            f"expected an image that fills at least one image token, found {image_hw[0]} x "
            f"{image_hw[1]} pixels (height x width) seen as {view.height} x {view.width}; use a "
            "larger or less elongated one"
        )
    n = int(index_HW.max()) + 1
    return Layout(
        index_HW=index_HW,
        rows_HW=rows_HW,
        box=Box(
            x0=view.left + float(starts_W[0]) * view.scale_x,
            y0=view.top + float(starts_H[0]) * view.scale_y,
            x1=view.left + float(starts_W[-1] + cell_w) * view.scale_x,
            y1=view.top + float(starts_H[-1] + cell_h) * view.scale_y,
        ),
        ys_H=view.top + (starts_H + cell_h / 2) * view.scale_y,
        xs_W=view.left + (starts_W + cell_w / 2) * view.scale_x,
        image_hw=ImageSize(*image_hw),
        n_tokens=n_tokens or n,
        n_rows=n_rows or n,
    )


def _fraction(centres: np.ndarray, at: float | np.ndarray, extent: tuple[float, ...]) -> np.ndarray:
    """Invert `centres` (ascending) piecewise linearly; `extent` is where the border cells end."""
    # One border cell more on each side turns extrapolation into interpolation.
    below, above = 2 * extent[0] - centres[0], 2 * extent[1] - centres[-1]
    known = np.concatenate([[below], centres, [above]])
    at = np.asarray(at, dtype=np.float64)
    inside = np.interp(at, known, np.arange(-1, len(centres) + 1))
    far_below = -1 + (at - below) / (centres[0] - below)
    far_above = len(centres) + (at - above) / (above - centres[-1])
    return np.where(at < below, far_below, np.where(at > above, far_above, inside))
