"""The grids of LLaVA's models: one tile, or a base tile and a mosaic of tiles (anyres)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.images.tiles import cell_starts, processed_view, side_by_side, tile_layout
from kvfix.mlm.layout import Layout, LayoutRequest, placed


def llava_layouts(request: LayoutRequest) -> list[Layout]:
    config, processor = request.config, request.processor
    if processor is None:
        raise ValueError(
            "expected the processor's files beside config.json, which say how images are cropped "
            "and resized, found config.json alone"
        )
    # The processor counts CLS and registers in `num_additional_image_tokens`; 'default' drops the
    # first.
    leading = processor.num_additional_image_tokens
    leading -= config.vision_feature_select_strategy == "default"
    return [
        tile_layout(
            size,
            processed_view(size, processor.image_processor),
            patch=config.vision_config.patch_size,
            leading=leading,
        )
        for size in request.sizes
    ]


def llava_next_layouts(request: LayoutRequest) -> list[Layout]:
    return [_anyres(request, size, max_tiles=None) for size in request.sizes]


def llava_onevision_layouts(request: LayoutRequest) -> list[Layout]:
    vision = request.config.vision_config
    if len(request.sizes) > 1:  # the processor tiles an image only when it is alone
        tile, patch = vision.image_size, vision.patch_size
        return [base_tile_layout(size, tile=tile, patch=patch) for size in request.sizes]
    max_tiles = int(request.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return [_anyres(request, size, max_tiles=max_tiles) for size in request.sizes]


def _anyres(request: LayoutRequest, size: tuple[int, int], *, max_tiles: int | None) -> Layout:
    vision = request.config.vision_config
    pinpoints = tuple((height, width) for height, width in request.config.image_grid_pinpoints)
    return _anyres_of_size(size, pinpoints, vision.image_size, vision.patch_size, max_tiles)


@lru_cache(maxsize=64)
def _anyres_of_size(
    size: tuple[int, int],
    pinpoints: Sequence[tuple[int, int]],
    tile: int,
    patch: int,
    max_tiles: int | None,
) -> Layout:
    """Images of one size share their layout, and what is computed from it."""
    return anyres_layout(size, pinpoints, tile=tile, patch=patch, max_tiles=max_tiles)


def base_tile_layout(image_hw: tuple[int, int], *, tile: int, patch: int) -> Layout:
    """LLaVA-OneVision, one of several images: padded to a square, one tile, then a newline."""
    view = PixelView.of(image_hw).padded_to_square().resized(tile, tile)
    plain = tile_layout(image_hw, view, patch=patch, leading=0)
    return replace(plain, n_tokens=plain.n_tokens + 1)


def anyres_layout(
    image_hw: tuple[int, int],
    pinpoints: Sequence[Sequence[int]],
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

    rows_HW = side * side + side_by_side((tiles_h, tiles_w), side)
    starts_H, starts_W = cell_starts(tiles_h, tile, patch), cell_starts(tiles_w, tile, patch)
    skip_h, skip_w = unpadding(image_hw, (rows_HW.shape[0], rows_HW.shape[1]))
    keep_h = slice(skip_h, rows_HW.shape[0] - skip_h)
    keep_w = slice(skip_w, rows_HW.shape[1] - skip_w)
    rows_HW, starts_H, starts_W = rows_HW[keep_h, keep_w], starts_H[keep_h], starts_W[keep_w]

    height, width = shrunk_grid((rows_HW.shape[0], rows_HW.shape[1]), side, max_tiles)
    starts_H, cell_h = _resample(starts_H, patch, height)
    starts_W, cell_w = _resample(starts_W, patch, width)

    newline_each = torch.arange(height)[:, None] * (width + 1)
    index_HW = side * side + newline_each + torch.arange(width)[None]
    return placed(
        *(view, image_hw, index_HW, rows_HW, starts_H, starts_W, cell_h, cell_w),
        n_tokens=side * side + height * (width + 1),
        n_rows=(1 + tiles_h * tiles_w) * side * side,
    )


def best_resolution(
    image_hw: tuple[int, int], pinpoints: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """The pinpoint that keeps most of the image's pixels and, among those, wastes fewest."""

    def rank(pinpoint: Sequence[int]) -> tuple[int, int]:
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


def _resample(starts: np.ndarray, cell: float, n: int) -> tuple[np.ndarray, float]:
    """Starts and extent of n cells made by linear interpolation (align_corners=False)."""
    if n == len(starts):
        return starts, cell
    at = (np.arange(n) + 0.5) * len(starts) / n - 0.5
    centres = np.interp(at, np.arange(len(starts)), starts + cell / 2)
    extent = cell * len(starts) / n
    return centres - extent / 2, extent
