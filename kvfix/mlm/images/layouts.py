"""How each family's processor cuts images into tokens: from sizes and settings to layouts.

Each function here is a family's entry in its row; the geometry is in `kvfix.mlm.layout`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvfix.mlm.layout import (
    Layout,
    PixelView,
    anyres_layout,
    base_tile_layout,
    mosaic_layout,
    raster_layout,
    tile_layout,
)


@dataclass(frozen=True)
class LayoutRequest:
    """What a family needs to lay out one sample's images."""

    sizes: list[tuple[int, int]]  # (height, width) of each image, original pixels
    config: Any  # the model's config
    processor: Any  # the model's processor
    grids_thw: Tensor | None = None  # qwen's `image_grid_thw` rows of these images; None for others


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
        view = _resized(view, _size(image_processor.size))
    if image_processor.do_center_crop:
        crop = _size(image_processor.crop_size)
        view = view.centre_crop(crop["height"], crop["width"])
    return view


def _resized(view: PixelView, size: dict[str, int]) -> PixelView:
    if set(size) == {"height", "width"}:
        return view.resized(size["height"], size["width"])
    if set(size) == {"shortest_edge"}:
        return view.shortest_edge(size["shortest_edge"])
    raise ValueError(f"expected image size as height and width or shortest_edge, found {size}")


def _size(size: Any) -> dict[str, int]:
    return {key: value for key, value in dict(size).items() if value is not None}


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
    return anyres_layout(
        size,
        request.config.image_grid_pinpoints,
        tile=vision.image_size,
        patch=vision.patch_size,
        max_tiles=max_tiles,
    )


def qwen2_5_vl_layouts(request: LayoutRequest) -> list[Layout]:
    vision = request.config.vision_config
    if request.grids_thw is None:
        raise ValueError("expected image_grid_thw among the processor's outputs, found none")
    merge = vision.spatial_merge_size
    window = vision.window_size // merge // vision.patch_size
    return [
        raster_layout(size, (grid[1], grid[2]), merge=merge, window=window)
        for size, grid in zip(request.sizes, request.grids_thw.tolist(), strict=True)
    ]


def raster_layouts(request: LayoutRequest) -> list[Layout]:
    """Qwen2-VL, Qwen3-VL and GLM-4V."""
    merge = request.config.vision_config.spatial_merge_size
    if request.grids_thw is None:
        raise ValueError("expected image_grid_thw among the processor's outputs, found none")
    return [
        raster_layout(size, (grid[1], grid[2]), merge=merge)
        for size, grid in zip(request.sizes, request.grids_thw.tolist(), strict=True)
    ]


def idefics3_layouts(request: LayoutRequest) -> list[Layout]:
    """Idefics3 and SmolVLM: tiles of an image whose longer side has a fixed length."""
    config = request.config
    tile = config.vision_config.image_size
    cell = config.vision_config.patch_size * config.scale_factor
    longest, split = 4 * tile, True  # as the published checkpoints have it
    if request.processor is not None:
        images = request.processor.image_processor
        split, size = images.do_image_splitting, _size(images.size)
        if set(size) != {"longest_edge"} or not images.do_resize:
            raise ValueError(
                f"expected images resized to a size of longest_edge, found do_resize "
                f"{images.do_resize} and size {size}"
            )
        longest = size["longest_edge"]
    return [
        mosaic_layout(
            size, idefics3_tiles(size, longest, tile) if split else (1, 1), tile=tile, cell=cell
        )
        for size in request.sizes
    ]


def idefics3_tiles(image_hw: tuple[int, int], longest: int, tile: int) -> tuple[int, int]:
    """Rows and columns of tiles; the roundings are those of the image processor.

    `longest` are pixels that the longer side is brought to (`size`), at most 4096, `tile` those
    along each side of a tile (`max_image_size`).
    """
    height, width = image_hw
    ratio = width / height
    if width >= height:
        height, width = max(_even(int(longest / ratio)), 1), longest
    else:
        height, width = longest, max(_even(int(longest * ratio)), 1)
    ratio = width / height
    if width >= height and width > _IDEFICS3_MOST:
        height, width = max(int(_IDEFICS3_MOST / ratio), 1), _IDEFICS3_MOST
    elif height > width and height > _IDEFICS3_MOST:
        height, width = _IDEFICS3_MOST, max(int(_IDEFICS3_MOST * ratio), 1)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        return math.ceil(int(columns * tile / ratio) / tile), columns
    rows = math.ceil(height / tile)
    return rows, math.ceil(int(rows * tile * ratio) / tile)


_IDEFICS3_MOST = 4096  # pixels along a side, whatever the settings


def _even(pixels: int) -> int:
    return pixels + pixels % 2


def idefics3_text(processor: Any, layout: Layout) -> str:
    """What Idefics3's and SmolVLM's processors put for one image."""
    tokens = processor.image_token * processor.image_seq_len
    around = processor.fake_image_token
    if layout.n_tokens == processor.image_seq_len:
        return f"{around}<global-img>{tokens}{around}"
    side = math.isqrt(processor.image_seq_len)
    rows, columns = (cells // side for cells in layout.grid_hw)
    tiles = "".join(
        "".join(f"{around}<row_{r + 1}_col_{c + 1}>{tokens}" for c in range(columns)) + "\n"
        for r in range(rows)
    )
    return f"{tiles}\n{around}<global-img>{tokens}{around}"


def internvl_layouts(request: LayoutRequest) -> list[Layout]:
    """InternVL: as many tiles as come closest to the image's aspect ratio, then a thumbnail."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    vision = request.config.vision_config
    tile, cell = vision.image_size[0], round(vision.patch_size[0] / request.config.downsample_ratio)
    least, most = 1, 12  # as the published checkpoints have it
    if request.processor is not None:
        images = request.processor.image_processor
        least, most = images.min_patches, images.max_patches
    tiles = [get_optimal_tiled_canvas(size, (tile, tile), least, most) for size in request.sizes]
    return [
        mosaic_layout(size, (rows, columns), tile=tile, cell=cell)
        for size, (columns, rows) in zip(request.sizes, tiles, strict=True)
    ]


def gemma3_layouts(request: LayoutRequest) -> list[Layout]:
    """Gemma 3: one tile, whose patches are averaged."""
    vision = request.config.vision_config
    images = None if request.processor is None else request.processor.image_processor
    if images is not None and images.do_pan_and_scan:
        raise ValueError(
            "expected do_pan_and_scan off, as kvfix has no map of its crops, found it on; set it "
            "to false in preprocessor_config.json"
        )
    tokens = math.isqrt(request.config.mm_tokens_per_image)
    cell = vision.patch_size * (vision.image_size // vision.patch_size // tokens)
    return [
        mosaic_layout(size, (1, 1), tile=vision.image_size, cell=cell) for size in request.sizes
    ]


def paligemma_layouts(request: LayoutRequest) -> list[Layout]:
    """PaliGemma: one tile."""
    vision = request.config.vision_config
    tile, cell = vision.image_size, vision.patch_size
    return [mosaic_layout(size, (1, 1), tile=tile, cell=cell) for size in request.sizes]
