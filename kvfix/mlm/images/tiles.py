"""Tiles: the grid of one alone (LLaVA-1.5, a bare vision encoder), and tiles side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.layout import Layout, placed


def processed_view(image_hw: tuple[int, int], image_processor: Any) -> PixelView:
    """Follow a one-tile processor's pad, resize and centre crop, where kvfix knows them."""
    view = PixelView.of(image_hw)
    if image_processor.do_pad:
        # Only LLaVA's own processors pad to a square; elsewhere `do_pad` is something else.
        if not hasattr(image_processor, "pad_to_square"):
            raise ValueError(
                "expected an image processor without do_pad, found "
                f"{type(image_processor).__name__} with it"
            )
        view = view.padded_to_square()
    if image_processor.do_resize:
        view = _resized(view, size_of(image_processor.size))
    if image_processor.do_center_crop:
        crop = size_of(image_processor.crop_size)
        view = view.centre_crop(crop["height"], crop["width"])
    return view


def _resized(view: PixelView, size: dict[str, int]) -> PixelView:
    if set(size) == {"height", "width"}:
        return view.resized(size["height"], size["width"])
    if set(size) == {"shortest_edge"}:
        return view.shortest_edge(size["shortest_edge"])
    raise ValueError(f"expected image size as height and width or shortest_edge, found {size}")


def size_of(size: Any) -> dict[str, int]:
    """The settings of a processor's size that are given."""
    return {key: value for key, value in dict(size).items() if value is not None}


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
    starts = cell_starts(1, view.height, patch), cell_starts(1, view.width, patch)
    return placed(view, image_hw, index_HW, index_HW, *starts, patch)


def cell_starts(n_tiles: int, tile: int, cell: int) -> np.ndarray:
    """First pixel of each cell of a row of tiles; what a tile has left over is never seen."""
    return (np.arange(n_tiles)[:, None] * tile + np.arange(tile // cell) * cell).reshape(-1)


def side_by_side(tiles_hw: tuple[int, int], side: int) -> Tensor:
    """Which row of a tower that sees tile after tile holds each cell of the mosaic of tiles."""
    rows, columns = tiles_hw
    tile_HW = torch.arange(rows * columns).view(rows, 1, columns, 1)
    cell_HW = torch.arange(side * side).view(1, side, 1, side)
    return (tile_HW * side * side + cell_HW).reshape(rows * side, columns * side)
