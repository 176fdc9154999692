"""The family table: all that kvfix knows about one kind of model and not about another.

Every other file asks this table; a new family is a new row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kvfix.adapters.naming import LLAVA_NAMES, QWEN_NAMES, Naming
from kvfix.checkpoint.processor_fields import (
    Field,
    llava_fields,
    llava_next_fields,
    llava_onevision_fields,
    patch_pixels,
    qwen2_5_vl_fields,
    square_pixels,
)
from kvfix.checkpoint.strangers import model_type_hint
from kvfix.mlm.image_shapes import (
    PixelLimits,
    counted_tiles,
    limited_grids,
    one_tile,
    patch_rows,
    tiles,
)
from kvfix.mlm.language_models import language_model_of
from kvfix.mlm.layout import (
    Layout,
    PixelView,
    anyres_layout,
    base_tile_layout,
    raster_layout,
    tile_layout,
)
from kvfix.wording import shown


@dataclass(frozen=True)
class Family:
    """One kind of multimodal language model.

    Attributes:
        model_type: `model_type` in the checkpoint's config.json.
        vision: Path of the vision tower.
        projector: Path of the module that takes vision features and gives image tokens.
        lm: Path of the language model (with `.layers` and `.rotary_emb`).
        patches_a_token: Vision rows that the projector merges into one image token.
        layouts: Layouts of one sample's images.
        lora_projector: Names of the LoRA targets in the projector, for `re.fullmatch`.
        lora_vision: The same in the vision tower, from the config: only layers whose output is
            used, as the others would get no gradient.
        positions_from_mask: Text position ids count real tokens only. False: the model derives its
            own (M-RoPE), and giving any would switch that off.
        image_shapes: Arguments of the model's `get_image_features` for one sample's images, without
            pixels: (sizes, config, layouts, grids) -> dict.
        processor: Name of its processor's class.
        fields: What the config says about the processor.
        pixels: Last sizes of `pixel_values` that the tower takes, from the config; empty: any.
        upstream: A repository that holds such a model with its processor, for messages.
        grids: Patch grids by size, config, processor and pixel limits; None: the config's tiles.
        old_names: What its modules were called before, newest first; adapters keep such names.
    """

    model_type: str
    vision: str
    projector: str
    lm: str
    patches_a_token: Callable[[Any], int]
    layouts: Callable[[LayoutRequest], list[Layout]]
    lora_projector: str
    lora_vision: Callable[[Any], str]
    positions_from_mask: bool
    image_shapes: Callable[[Sequence[tuple[int, int]], Any, Sequence[Layout], Any], dict[str, Any]]
    processor: str
    fields: Callable[[Any], list[Field]]
    pixels: Callable[[Any], tuple[int, ...]]
    upstream: str
    grids: Callable[[Sequence[tuple[int, int]], Any, Any, PixelLimits], Tensor] | None = None
    old_names: tuple[Naming, ...] = ()

    def lora_targets(self, config: Any, *parts: str) -> str:
        """One regex for PEFT's `target_modules`; it matches full names, so nothing leaks elsewhere.

        Args:
            config: The model's config.
            parts: Any of "lm", "projector", "vision".

        Raises:
            ValueError: An unknown part, or none.
        """
        kind = language_model_of(config.text_config.model_type, where=self.model_type)
        table = {
            "lm": rf"{re.escape(self.lm)}\.layers\.\d+\.({kind.lora})",
            "projector": self.lora_projector,
            "vision": self.lora_vision(config),
        }
        unknown = [part for part in parts if part not in table]
        if unknown or not parts:
            raise ValueError(f"expected parts out of {', '.join(table)}, found {unknown or 'none'}")
        return "|".join(f"(?:{table[part]})" for part in parts)


@dataclass(frozen=True)
class LayoutRequest:
    """What a family needs to lay out one sample's images.

    Attributes:
        sizes: (height, width) of each image, original pixels.
        config: The model's config.
        processor: The model's processor.
        grids_thw: Qwen's `image_grid_thw` rows of these images; None for others.
    """

    sizes: list[tuple[int, int]]
    config: Any
    processor: Any
    grids_thw: Tensor | None = None


def family_of(model_type: str | None, *, where: str) -> Family:
    """The row of a model type.

    Args:
        model_type: As in config.json.
        where: Named in the error.

    Raises:
        ValueError: kvfix does not know the type.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"{where}: expected model_type to be one of {', '.join(sorted(FAMILIES))}, found "
            f"{shown(model_type)}{model_type_hint(model_type)}"
        )
    return FAMILIES[model_type]


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, looked up anew because PEFT swaps modules in place."""
    return model.get_submodule(path)


def processed_view(image_hw: tuple[int, int], image_processor: Any) -> PixelView:
    """Follow a one-tile processor's pad, resize and centre crop.

    Raises:
        ValueError: A setting whose geometry kvfix does not know.
    """
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


def _llava(request: LayoutRequest) -> list[Layout]:
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


def _llava_next(request: LayoutRequest) -> list[Layout]:
    return [_anyres(request, size, max_tiles=None) for size in request.sizes]


def _llava_onevision(request: LayoutRequest) -> list[Layout]:
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


def _qwen2_5_vl(request: LayoutRequest) -> list[Layout]:
    vision = request.config.vision_config
    if request.grids_thw is None:
        raise ValueError("expected image_grid_thw among the processor's outputs, found none")
    merge = vision.spatial_merge_size
    window = vision.window_size // merge // vision.patch_size
    return [
        raster_layout(size, (grid[1], grid[2]), merge=merge, window=window)
        for size, grid in zip(request.sizes, request.grids_thw.tolist(), strict=True)
    ]


_MLP_LORA = r"model\.multi_modal_projector\.linear_[12]"
_QWEN_VISION_LORA = r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)"


def _tower_lora(config: Any) -> str:
    """Up to the selected feature layer: number k is what layer k - 1 puts out."""
    chosen = config.vision_feature_layer
    depth = config.vision_config.num_hidden_layers
    last = max(k % (depth + 1) for k in ([chosen] if isinstance(chosen, int) else chosen))
    layers = "|".join(str(k) for k in range(last))
    # CLIP and SigLIP name the list `layers` and the output `out_proj`, DINOv2 `layer` and `o_proj`.
    return (
        rf"model\.vision_tower\.encoder\.layers?\.({layers})"
        r"\.((self_attn|attention)\.([qkvo]|out)_proj|mlp\.(fc[12]|gate_proj|up_proj|down_proj))"
    )


def _llava_like(
    model_type: str,
    layouts: Callable[[LayoutRequest], list[Layout]],
    image_shapes: Callable[..., dict[str, Any]],
    processor: str,
    fields: Callable[[Any], list[Field]],
    upstream: str,
) -> Family:
    return Family(
        model_type=model_type,
        vision="model.vision_tower",
        projector="model.multi_modal_projector",
        lm="model.language_model",
        patches_a_token=lambda config: 1,
        layouts=layouts,
        lora_projector=_MLP_LORA,
        lora_vision=_tower_lora,
        positions_from_mask=True,
        image_shapes=image_shapes,
        processor=processor,
        fields=fields,
        pixels=square_pixels,
        upstream=upstream,
        old_names=LLAVA_NAMES,
    )


FAMILIES: dict[str, Family] = {
    "llava": _llava_like(
        "llava",
        _llava,
        one_tile,
        processor="LlavaProcessor",
        fields=llava_fields,
        upstream="llava-hf/llava-1.5-7b-hf",
    ),
    "llava_next": _llava_like(
        "llava_next",
        _llava_next,
        tiles,
        processor="LlavaNextProcessor",
        fields=llava_next_fields,
        upstream="llava-hf/llava-v1.6-mistral-7b-hf",
    ),
    "llava_onevision": _llava_like(
        "llava_onevision",
        _llava_onevision,
        counted_tiles,
        processor="LlavaOnevisionProcessor",
        fields=llava_onevision_fields,
        upstream="llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    "qwen2_5_vl": Family(
        model_type="qwen2_5_vl",
        vision="model.visual",
        projector="model.visual.merger",
        lm="model.language_model",
        patches_a_token=lambda config: config.vision_config.spatial_merge_size**2,
        layouts=_qwen2_5_vl,
        lora_projector=r"model\.visual\.merger\.mlp\.[02]",
        lora_vision=lambda config: _QWEN_VISION_LORA,
        positions_from_mask=False,
        image_shapes=patch_rows,
        processor="Qwen2_5_VLProcessor",
        fields=qwen2_5_vl_fields,
        pixels=patch_pixels,
        upstream="Qwen/Qwen2.5-VL-7B-Instruct",
        grids=limited_grids,
        old_names=QWEN_NAMES,
    ),
}
