"""What a family's config.json says about its processor, field by field.

A processor saved by an older transformers lacks fields, and one copied from another checkpoint has
wrong ones; the config determines which are right (see `kvfix.mlm.processor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvfix.checkpoint.towers import TOWERS


class Field(NamedTuple):
    """One field of a processor."""

    name: str  # its attribute, or, after "image_processor.", one of its image processor's
    right: Any  # what config.json makes of it
    source: str  # where in config.json that stands
    only: bool = True  # no other value works; False: `right` only fills a hole


def llava_fields(config: Any) -> list[Field]:
    """LLaVA-1.5: one tile, the tower's leading tokens counted by the processor."""
    side = config.vision_config.image_size
    crop = {"height": side, "width": side}
    fields = [
        *_patches(config),
        Field("image_processor.size", {"shortest_edge": side}, "vision_config.image_size", False),
        Field("image_processor.crop_size", crop, "vision_config.image_size", False),
    ]
    tower = TOWERS.get(config.vision_config.model_type)
    if tower is None:
        return fields
    extra = tower.leading(config.vision_config)
    source = f"the tower {config.vision_config.model_type}"
    return [*fields, Field("num_additional_image_tokens", extra, source)]


def llava_next_fields(config: Any) -> list[Field]:
    """LLaVA-NeXT: the same for the base tile, and which mosaics there are."""
    return [*llava_fields(config), _pinpoints(config)]


def llava_onevision_fields(config: Any) -> list[Field]:
    """LLaVA-OneVision: tokens of a tile, and how far a mosaic is shrunk."""
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    size = {"height": vision.image_size, "width": vision.image_size}
    return [
        Field("num_image_tokens", tokens, "vision_config.image_size and patch_size"),
        _strategy(config),
        Field("vision_aspect_ratio", config.vision_aspect_ratio, "vision_aspect_ratio"),
        _pinpoints(config),
        Field("image_processor.size", size, "vision_config.image_size", False),
    ]


def qwen_fields(config: Any) -> list[Field]:
    """Qwen's and GLM's models: patches, and how many are merged."""
    vision = config.vision_config
    return [
        Field(f"image_processor.{name}", getattr(vision, source), f"vision_config.{source}")
        for name, source in (
            ("patch_size", "patch_size"),
            ("merge_size", "spatial_merge_size"),
            ("temporal_patch_size", "temporal_patch_size"),
        )
    ]


def idefics3_fields(config: Any) -> list[Field]:
    """Idefics3 and SmolVLM: tokens of a tile, and its size."""
    side = config.vision_config.image_size
    patches = side // config.vision_config.patch_size
    tokens = int(patches**2 / config.scale_factor**2)
    source = "vision_config.image_size"
    return [
        Field("image_seq_len", tokens, f"{source}, patch_size and scale_factor"),
        Field("image_processor.max_image_size", {"longest_edge": side}, source),
        Field("image_processor.size", {"longest_edge": 4 * side}, source, False),
    ]


def internvl_fields(config: Any) -> list[Field]:
    """InternVL: tokens of a tile, and its size."""
    height, width = config.vision_config.image_size
    size = {"height": height, "width": width}
    return [
        Field("image_seq_length", config.image_seq_length, "image_seq_length"),
        Field("image_processor.size", size, "vision_config.image_size"),
    ]


def gemma3_fields(config: Any) -> list[Field]:
    """Gemma 3: tokens of an image, and its size."""
    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    return [
        # Only where a processor is made does this move what it puts; the count of tokens is proved.
        Field("image_seq_length", config.mm_tokens_per_image, "mm_tokens_per_image", False),
        Field("image_processor.size", size, "vision_config.image_size"),
    ]


def paligemma_fields(config: Any) -> list[Field]:
    """PaliGemma: tokens of an image, and its size."""
    side = config.vision_config.image_size
    tokens = (side // config.vision_config.patch_size) ** 2
    size = {"height": side, "width": side}
    return [
        Field("image_seq_length", tokens, "vision_config.image_size and patch_size"),
        Field("image_processor.size", size, "vision_config.image_size"),
    ]


def tile_pixels(config: Any) -> tuple[int, ...]:
    """Last sizes of `pixel_values` for a tower of square tiles of one size."""
    side = config.vision_config.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


def square_pixels(config: Any) -> tuple[int, ...]:
    """Last sizes of `pixel_values` for a tower of tiles; empty: it takes any."""
    tower = TOWERS.get(config.vision_config.model_type)
    if tower is None or tower.any_size:
        return ()
    return (config.vision_config.image_size,) * 2


def patch_pixels(config: Any) -> tuple[int, ...]:
    """The same for a tower that is given patches: numbers in one."""
    vision = config.vision_config
    return (vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,)


def same(found: Any, right: Any) -> bool:
    """Whether two values of a field mean the same: mosaics in any order, lists or tuples."""
    if isinstance(found, Sequence) and isinstance(right, Sequence) and not isinstance(right, str):
        return sorted(map(str, map(_plain, found))) == sorted(map(str, map(_plain, right)))
    return found == right


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _patches(config: Any) -> list[Field]:
    patch = config.vision_config.patch_size
    return [Field("patch_size", patch, "vision_config.patch_size"), _strategy(config)]


def _strategy(config: Any) -> Field:
    name = "vision_feature_select_strategy"
    return Field(name, getattr(config, name), name)


def _pinpoints(config: Any) -> Field:
    name = "image_grid_pinpoints"
    return Field(f"image_processor.{name}", [list(p) for p in config.image_grid_pinpoints], name)
