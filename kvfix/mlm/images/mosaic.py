"""The grids of models that stretch an image over whole tiles: Idefics3 to PaliGemma."""

from __future__ import annotations

import math
from typing import Any

from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.images.tiles import cell_starts, side_by_side, size_of
from kvfix.mlm.layout import Layout, LayoutRequest, placed


def idefics3_layouts(request: LayoutRequest) -> list[Layout]:
    """Idefics3 and SmolVLM: tiles of an image whose longer side has a fixed length."""
    config = request.config
    tile = config.vision_config.image_size
    cell = config.vision_config.patch_size * config.scale_factor
    longest, split = 4 * tile, True  # as the published checkpoints have it
    if request.processor is not None:
        images = request.processor.image_processor
        split, size = images.do_image_splitting, size_of(images.size)
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


def mosaic_layout(
    image_hw: tuple[int, int], tiles_hw: tuple[int, int], *, tile: int, cell: int
) -> Layout:
    """The whole image stretched over tiles in raster order, then once more as one tile.

    InternVL, Idefics3 and SmolVLM; of one tile (then nothing follows it) Gemma 3 and PaliGemma. The
    grid is that of the tiles; tile and cell are pixels along a side.
    """
    (tiles_h, tiles_w), side = tiles_hw, tile // cell
    view = PixelView.of(image_hw).resized(tiles_h * tile, tiles_w * tile)
    index_HW = side_by_side(tiles_hw, side)
    starts = cell_starts(tiles_h, tile, cell), cell_starts(tiles_w, tile, cell)
    n_tiles = tiles_h * tiles_w
    n = (n_tiles + (n_tiles > 1)) * side * side
    return placed(view, image_hw, index_HW, index_HW, *starts, cell, n_tokens=n, n_rows=n)
