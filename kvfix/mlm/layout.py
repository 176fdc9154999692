"""Which image token shows which part of the original image: one pure function a family.

A layout is exact: cell centres are kept per row and per column, because grids are not always
uniform (27 patches of 14 px cover 378 of a 384 px tile, and a mosaic repeats that gap at each tile
border).

Shapes: H, W rows and columns of the grid; V image tokens of one image; R projector rows of one
    image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvfix.mlm.images.pixel_view import PixelView

__all__ = ["Box", "GridPoint", "ImageSize", "Layout", "PixelView"]


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


def raster_layout(
    image_hw: tuple[int, int], grid_hw: tuple[int, int], *, merge: int, window: int | None = None
) -> Layout:
    """Qwen's and GLM's models: the whole image, stretched to whole merged cells, in raster order.

    `grid_hw` is `image_grid_thw[1:]`, before patches are merged by `merge` along each axis.
    Qwen2.5-VL's vision tower works window by window (merged cells along each side), so the merger
    sees its rows in window order while the language model sees them in raster order.
    """
    height, width = grid_hw[0] // merge, grid_hw[1] // merge
    index_HW = torch.arange(height * width).view(height, width)
    row_H1, col_1W = torch.arange(height)[:, None], torch.arange(width)[None]
    window = window or max(height, width, 1)
    windows_a_row = -(-width // window)
    window_HW = (row_H1 // window) * windows_a_row + col_1W // window
    order_R = torch.argsort(window_HW.flatten(), stable=True)
    rows_HW = torch.argsort(order_R).view(height, width)
    view = PixelView.of(image_hw).resized(height, width)  # one "pixel" a cell
    return _layout(view, image_hw, index_HW, rows_HW, np.arange(height), np.arange(width), 1.0)


def tile_layout(image_hw: tuple[int, int], view: PixelView, *, patch: int, leading: int) -> Layout:
    """LLaVA-1.5: one tile, whatever part of the image the processor's resize and crop left of it.

    `leading` tokens before the first patch (CLS, registers) go through the projector, too; fewer
    than 0 are refused: the 'default' strategy dropped a patch instead of a CLS token.
    """
    if leading < 0:
        raise ValueError(
            "expected a vision tower with a CLS token for "
            "vision_feature_select_strategy='default', found one without: the first patch would be "
            "dropped; set the strategy to 'full'"
        )
    height, width = view.height // patch, view.width // patch
    index_HW = leading + torch.arange(height * width).view(height, width)
    centres = _patch_starts(height, patch), _patch_starts(width, patch)
    return _layout(view, image_hw, index_HW, index_HW, *centres, patch)


def base_tile_layout(image_hw: tuple[int, int], *, tile: int, patch: int) -> Layout:
    """LLaVA-OneVision, one of several images: padded to a square, one tile, then a newline."""
    view = PixelView.of(image_hw).padded_to_square().resized(tile, tile)
    plain = tile_layout(image_hw, view, patch=patch, leading=0)
    return _replace_tokens(plain, n_tokens=plain.n_tokens + 1)


def anyres_layout(
    image_hw: tuple[int, int],
    pinpoints: list[list[int]],
    *,
    tile: int,
    patch: int,
    max_tiles: int | None = None,
) -> Layout:
    """LLaVA-NeXT and OneVision: the base tile, then the unpadded mosaic with a newline a row.

    The grid is the mosaic. Follows `pack_image_features` and `unpad_image` of both model files and
    `_get_image_patches` of their image processors in transformers. Pinpoints are resolutions
    (height, width) that the processor chooses from; tile and patch are pixels along a side;
    `max_tiles` is 9 for anyres_max_9: mosaics of more cells than that many tiles are shrunk.
    """
    side = tile // patch
    best_h, best_w = best_resolution(image_hw, pinpoints)
    tiles_h, tiles_w = best_h // tile, best_w // tile
    view = PixelView.of(image_hw).fitted(best_h, best_w)

    tile_HW = torch.arange(tiles_h * tiles_w).view(tiles_h, 1, tiles_w, 1)
    cell_HW = torch.arange(side * side).view(1, side, 1, side)
    rows_HW = ((1 + tile_HW) * side * side + cell_HW).reshape(tiles_h * side, tiles_w * side)
    starts_H = _mosaic_starts(tiles_h, tile, patch)
    starts_W = _mosaic_starts(tiles_w, tile, patch)

    skip_h, skip_w = unpadding(image_hw, (rows_HW.shape[0], rows_HW.shape[1]))
    keep_h = slice(skip_h, rows_HW.shape[0] - skip_h)
    keep_w = slice(skip_w, rows_HW.shape[1] - skip_w)
    rows_HW, starts_H, starts_W = rows_HW[keep_h, keep_w], starts_H[keep_h], starts_W[keep_w]

    height, width = shrunk_grid((rows_HW.shape[0], rows_HW.shape[1]), side, max_tiles)
    starts_H, cell_h = _resample(starts_H, patch, height)
    starts_W, cell_w = _resample(starts_W, patch, width)

    newline_each = torch.arange(height)[:, None] * (width + 1)
    index_HW = side * side + newline_each + torch.arange(width)[None]
    n_rows = (1 + tiles_h * tiles_w) * side * side
    plain = _layout(view, image_hw, index_HW, rows_HW, starts_H, starts_W, cell_h, cell_w)
    return _replace_tokens(plain, n_tokens=side * side + height * (width + 1), n_rows=n_rows)


def mosaic_layout(
    image_hw: tuple[int, int], tiles_hw: tuple[int, int], *, tile: int, cell: int
) -> Layout:
    """The whole image stretched over tiles in raster order, then once more as one tile.

    InternVL, Idefics3 and SmolVLM; of one tile (then nothing follows it) Gemma 3 and PaliGemma. The
    grid is that of the tiles; tile and cell are pixels along a side.
    """
    (tiles_h, tiles_w), side = tiles_hw, tile // cell
    view = PixelView.of(image_hw).resized(tiles_h * tile, tiles_w * tile)
    tile_HW = torch.arange(tiles_h * tiles_w).view(tiles_h, 1, tiles_w, 1)
    cell_HW = torch.arange(side * side).view(1, side, 1, side)
    index_HW = (tile_HW * side * side + cell_HW).reshape(tiles_h * side, tiles_w * side)
    starts = _mosaic_starts(tiles_h, tile, cell), _mosaic_starts(tiles_w, tile, cell)
    plain = _layout(view, image_hw, index_HW, index_HW, *starts, cell)
    n_tiles = tiles_h * tiles_w
    n = (n_tiles + (n_tiles > 1)) * side * side
    return _replace_tokens(plain, n_tokens=n, n_rows=n)


def best_resolution(image_hw: tuple[int, int], pinpoints: list[list[int]]) -> tuple[int, int]:
    """The pinpoint that keeps most of the image's pixels and, among those, wastes fewest."""

    def rank(pinpoint: list[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / image_hw[1], pinpoint[0] / image_hw[0])
        kept = min(int(image_hw[1] * scale) * int(image_hw[0] * scale), image_hw[0] * image_hw[1])
        return kept, kept - pinpoint[0] * pinpoint[1]

    best = max(pinpoints, key=rank)
    return best[0], best[1]


def unpadding(image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells dropped at EACH border because they hold nothing but padding."""
    image_h, image_w = image_hw
    grid_h, grid_w = grid_hw
    # The products and their rounding are the model's: any other form drops another row now and
    # then.
    if image_w / image_h > grid_w / grid_h:
        return (grid_h - int(round(image_h * (grid_w / image_w), 7))) // 2, 0
    return 0, (grid_w - int(round(image_w * (grid_h / image_h), 7))) // 2


def shrunk_grid(grid_hw: tuple[int, int], side: int, max_tiles: int | None) -> tuple[int, int]:
    """Grid after anyres_max_N: shrunk when it has more than 1.1^2 * N tiles' worth of cells."""
    if max_tiles is None:
        return grid_hw
    ratio = math.sqrt(grid_hw[0] * grid_hw[1] / (max_tiles * side**2))
    return (int(grid_hw[0] // ratio), int(grid_hw[1] // ratio)) if ratio > 1.1 else grid_hw


def _patch_starts(n: int, patch: int) -> np.ndarray:
    """First pixel of each patch; pixels after the last whole patch are never seen."""
    return np.arange(n) * patch


def _mosaic_starts(n_tiles: int, tile: int, patch: int) -> np.ndarray:
    """First pixel of each patch of a row of tiles."""
    return (np.arange(n_tiles)[:, None] * tile + _patch_starts(tile // patch, patch)[None]).reshape(
        -1
    )


def _resample(starts: np.ndarray, cell: float, n: int) -> tuple[np.ndarray, float]:
    """Starts and extent of n cells made by linear interpolation (align_corners=False)."""
    if n == len(starts):
        return starts, cell
    at = (np.arange(n) + 0.5) * len(starts) / n - 0.5
    centres = np.interp(at, np.arange(len(starts)), starts + cell / 2)
    extent = cell * len(starts) / n
    return centres - extent / 2, extent


def _layout(
    view: PixelView,
    image_hw: tuple[int, int],
    index_HW: Tensor,
    rows_HW: Tensor,
    starts_H: np.ndarray,
    starts_W: np.ndarray,
    cell_h: float,
    cell_w: float | None = None,
) -> Layout:
    """Put cells (first pixel and extent, in the view) back into the original image."""
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
        n_tokens=n,
        n_rows=n,
    )


def _replace_tokens(layout: Layout, *, n_tokens: int, n_rows: int | None = None) -> Layout:
    return Layout(
        **{
            **vars(layout),
            "n_tokens": n_tokens,
            "n_rows": layout.n_rows if n_rows is None else n_rows,
        }
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
