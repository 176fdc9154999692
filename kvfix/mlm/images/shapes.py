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

    The `limits` are instead of the processor's; None as processor takes those of transformers' own.
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
    """Qwen2-VL: arguments of `get_image_features`, with all that it would read off the grids.

    Lengths are numpy arrays: the tower takes them as numbers, which tensors without data lack.
    """
    vision = config.vision_config
    rows = [height * width for _, height, width in grids.tolist()]
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.empty(sum(rows), channels),
        "image_grid_thw": np.array(grids.tolist()),
        "position_ids": torch.empty(sum(rows), 2, dtype=torch.long),
        "cu_seqlens": np.cumsum([0, *rows]),
    }


def windowed_patch_rows(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: torch.Tensor
) -> dict[str, Any]:
    """Qwen2.5-VL: the same, and which patches attend to one another."""
    merge = config.vision_config.spatial_merge_size
    window = config.vision_config.window_size // merge // config.vision_config.patch_size
    inside = [
        h * w * merge**2
        for _, height, width in grids.tolist()
        for h in _window_sides(height // merge, window)
        for w in _window_sides(width // merge, window)
    ]
    return patch_rows(sizes, config, layouts, grids) | {
        "cu_window_seqlens": np.cumsum([0, *inside]),
        "window_index": torch.empty(sum(inside) // merge**2, dtype=torch.long),
    }


def placed_patch_rows(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: torch.Tensor
) -> dict[str, Any]:
    """Qwen3-VL: as Qwen2-VL, and where each patch lies among the learned positions."""
    given = patch_rows(sizes, config, layouts, grids)
    total = len(given["pixel_values"])
    return given | {
        "interp_indices": torch.empty(total, 4, dtype=torch.long),
        "interp_weights": torch.empty(total, 4),
    }


def stretched_tiles(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: Any
) -> dict[str, Any]:
    """InternVL, Gemma 3 and PaliGemma: arguments of `get_image_features`."""
    side = config.vision_config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    # Every tile has as many tokens as a grid of one tile would have.
    count = sum(layout.n_tokens for layout in layouts) // _tokens_per_tile(config)
    return {"pixel_values": torch.empty(count, 3, height, width)}


def masked_tiles(
    sizes: Sequence[tuple[int, int]], config: Any, layouts: Sequence[Layout], grids: Any
) -> dict[str, Any]:
    """Idefics3 and SmolVLM: the same, and which pixels are no padding."""
    given = stretched_tiles(sizes, config, layouts, grids)
    count, _, height, width = given["pixel_values"].shape
    return given | {"pixel_attention_mask": torch.empty(count, height, width, dtype=torch.long)}


def _tokens_per_tile(config: Any) -> int:
    vision = config.vision_config
    if hasattr(config, "scale_factor"):
        return (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    stated = (getattr(config, name, None) for name in ("mm_tokens_per_image", "image_seq_length"))
    patches = config.vision_config.image_size, config.vision_config.patch_size
    return next((n for n in stated if n), None) or (patches[0] // patches[1]) ** 2


def of_the_model(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """Image tokens as the base model's `get_image_features` makes them."""
    return torch.cat(tuple(model.get_image_features(**given).pooler_output))


def _window_sides(cells: int, window: int) -> list[int]:
    """Cells along one side of each window."""
    return [min(window, cells - start) for start in range(0, cells, window)]


def of_idefics3(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """Image tokens of Idefics3 and SmolVLM; their own function asks what the tiles hold."""
    # It copies the tiles that are no padding, and their masks.
    copies = [given[name].clone() for name in ("pixel_values", "pixel_attention_mask")]
    tower, pixels = model.vision_model, copies[0]
    patch = tower.patch_size
    grid = pixels.shape[0], pixels.shape[2] // patch, pixels.shape[3] // patch
    seen = torch.ones(grid, dtype=torch.bool)
    hidden = tower.embeddings(pixel_values=pixels, patch_attention_mask=seen)
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
    return model.connector(tower.post_layernorm(hidden)).flatten(0, 1)


def of_glm(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """Image tokens of GLM-4V, without what it computes its learned positions from.

    Those it resamples by numbers that tensors without data lack; they are as large as the patches.
    """
    model.visual.embeddings.forward = lambda hidden, *rest: hidden + torch.empty_like(hidden)
    return of_the_model(model, given)


def glm_grids(
    sizes: Sequence[tuple[int, int]], config: Any, processor: Any, limits: PixelLimits
) -> torch.Tensor:
    """GLM-4V: patch grids; its limits count every frame of a temporal patch."""
    from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor, smart_resize

    known = (Glm4vImageProcessor() if processor is None else processor.image_processor).size
    vision = config.vision_config
    frames, patch = vision.temporal_patch_size, vision.patch_size
    least = known["shortest_edge"] if limits.least is None else limits.least * frames
    most = known["longest_edge"] if limits.most is None else limits.most * frames
    cell = patch * vision.spatial_merge_size
    if least > most or most < frames * cell**2:
        raise ValueError(
            f"expected pixel limits with at least {cell**2} pixels as the upper one and none above "
            f"it, found {least // frames} to {most // frames}"
        )
    grids = [
        smart_resize(frames, *size, frames, cell, min_pixels=least, max_pixels=most)
        for size in sizes
    ]
    return torch.tensor([[1, height // patch, width // patch] for height, width in grids])
