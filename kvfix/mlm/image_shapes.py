"""What a vision tower is given for images of known sizes: shapes alone, for plans that run nothing.

Shapes: none; the tensors made here hold no pixels, so make them under a fake or meta device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from kvfix.mlm.layout import Layout


class PixelLimits(NamedTuple):
    """Pixels an image is scaled into; None is the processor's own."""

    least: int | None = None
    most: int | None = None


def limited_grids(
    sizes: Sequence[tuple[int, int]], config: Any, processor: Any, limits: PixelLimits
) -> torch.Tensor:
    """Qwen2.5-VL: patch grids as its image processor chooses them, one row (1, rows, columns) each.

    Args:
        sizes: (height, width) of each image, original pixels.
        config: The model's config.
        processor: The model's processor; None takes the limits of transformers' own.
        limits: Instead of the processor's.

    Raises:
        ValueError: Limits that no image meets.
    """
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    known = (Qwen2VLImageProcessor() if processor is None else processor.image_processor).size
    least = limits.least or known["shortest_edge"]
    most = limits.most or known["longest_edge"]
    vision = config.vision_config
    cell = vision.patch_size * vision.spatial_merge_size
    if least > most or most < cell**2:
        raise ValueError(
            f"expected pixel limits with at least {cell**2} pixels as the upper one and none above "
            f"it, found {least} to {most}"
        )
    grids = [smart_resize(*size, factor=cell, min_pixels=least, max_pixels=most) for size in sizes]
    patch = vision.patch_size
    return torch.tensor([[1, height // patch, width // patch] for height, width in grids])


def one_tile(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: Any
) -> dict[str, Any]:
    """LLaVA-1.5: arguments of `get_image_features`."""
    patch = config.vision_config.patch_size
    height, width = (side * patch for side in layouts[0].grid_hw)
    return {"pixel_values": torch.empty(len(sizes), 3, height, width)}


def tiles(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: Any
) -> dict[str, Any]:
    """LLaVA-NeXT: arguments of `get_image_features`; all images have the tiles of the largest."""
    vision = config.vision_config
    most = max(layout.n_rows for layout in layouts) // (vision.image_size // vision.patch_size) ** 2
    pixels = torch.empty(len(sizes), most, 3, vision.image_size, vision.image_size)
    return {"pixel_values": pixels, "image_sizes": [list(size) for size in sizes]}


def counted_tiles(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: Any
) -> dict[str, Any]:
    """LLaVA-OneVision: of one sample; it tiles an image only when it is alone."""
    return tiles(sizes, config, layouts, grids) | {"batch_num_images": [len(sizes)]}


def patch_rows(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: torch.Tensor
) -> dict[str, Any]:
    """Qwen2.5-VL: arguments of `get_image_features`, with all that it would read off the grids.

    Lengths are numpy arrays: the tower takes them as numbers, which tensors without data lack.
    """
    vision = config.vision_config
    merge, patch = vision.spatial_merge_size, vision.patch_size
    window = vision.window_size // merge // patch
    rows, inside = [], []
    for _, height, width in grids.tolist():
        rows.append(height * width)
        inside += [
            h * w * merge**2
            for h in _window_sides(height // merge, window)
            for w in _window_sides(width // merge, window)
        ]
    total = sum(rows)
    channels = vision.in_channels * vision.temporal_patch_size * patch**2
    return {
        "pixel_values": torch.empty(total, channels),
        "image_grid_thw": np.array(grids.tolist()),
        "position_ids": torch.empty(total, 2, dtype=torch.long),
        "cu_seqlens": np.cumsum([0, *rows]),
        "cu_window_seqlens": np.cumsum([0, *inside]),
        "window_index": torch.empty(total // merge**2, dtype=torch.long),
    }


def _window_sides(cells: int, window: int) -> list[int]:
    """Cells along one side of each window."""
    return [min(window, cells - start) for start in range(0, cells, window)]
