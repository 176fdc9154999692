"""The grids of Qwen's and GLM's models: patches of the whole image, merged two by two."""

from __future__ import annotations

import numpy as np
import torch

from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.layout import Layout, LayoutRequest, placed


def raster_layouts(request: LayoutRequest) -> list[Layout]:
    """Qwen2-VL, Qwen3-VL and GLM-4V."""
    return _layouts(request, window=None)


def window_layouts(request: LayoutRequest) -> list[Layout]:
    """Qwen2.5-VL, whose tower works window by window."""
    vision = request.config.vision_config
    cell = vision.spatial_merge_size * vision.patch_size
    return _layouts(request, window=vision.window_size // cell)


def _layouts(request: LayoutRequest, *, window: int | None) -> list[Layout]:
    if request.grids_thw is None:
        raise ValueError("expected image_grid_thw among the processor's outputs, found none")
    merge = request.config.vision_config.spatial_merge_size
    return [
        raster_layout(size, (grid[1], grid[2]), merge=merge, window=window)
        for size, grid in zip(request.sizes, request.grids_thw.tolist(), strict=True)
    ]


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
    return placed(view, image_hw, index_HW, rows_HW, np.arange(height), np.arange(width), 1.0)
