"""Tiny LLaVAs, with every tower and language model that they may have."""

from __future__ import annotations

from typing import Any

from tiny_parts import PINPOINTS, TEMPLATE, TOWER, clip, clip_pixels, lm_config, tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    SiglipVisionConfig,
)


def llava_next() -> tuple[Any, Any]:
    """CLIP tower; CLS dropped."""
    tok = tokenizer()
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=lm_config(tok, LlamaConfig),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **clip_pixels()),
        tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava(
    *,
    tower: Any = None,
    pixels: Any = None,
    strategy: str = "default",
    extra: int = 1,
    layer: int | list[int] = -2,
    width: int = 32,
    text: tuple[Any, dict[str, Any]] = (LlamaConfig, {}),
) -> tuple[Any, Any]:
    """CLIP tower with a centre crop, and a Llama, unless told otherwise."""
    tok, (kind, more) = tokenizer(), text
    config = LlavaConfig(
        vision_config=tower or clip(),
        text_config=lm_config(
            tok, kind, **{"hidden_size": width, "intermediate_size": 2 * width} | more
        ),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaProcessor(
        pixels or LlavaImageProcessor(**clip_pixels()),
        tok,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return LlavaForConditionalGeneration(config), processor


def llava_siglip() -> tuple[Any, Any]:
    """A tower without CLS, nothing dropped."""
    tower = SiglipVisionConfig(
        intermediate_size=48, image_size=48, patch_size=8, vision_use_head=False, **TOWER
    )
    pixels = LlavaImageProcessor(size={"height": 48, "width": 48}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels, strategy="full", extra=0)


def llava_dinov2() -> tuple[Any, Any]:
    """A DINOv2 tower whose processor stretches instead of cropping, to another size."""
    tower = Dinov2Config(mlp_ratio=2, image_size=64, patch_size=8, **TOWER)
    pixels = LlavaImageProcessor(size={"height": 48, "width": 56}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels)


def llava_full() -> tuple[Any, Any]:
    """CLS kept, two feature layers side by side, pixels padded to a square."""
    pixels = LlavaImageProcessor(do_pad=True, **clip_pixels())
    return llava(pixels=pixels, strategy="full", layer=[-2, -1])


def llava_with(kind: Any, **more: Any) -> tuple[Any, Any]:
    """Another language model under the same tower."""
    return llava(text=(kind, more))


def llava_bare_clip() -> tuple[Any, Any]:
    """The image processor of the first LLaVA-1.5 checkpoints; its crop is not whole patches."""
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 50, "width": 50})
    tower = CLIPVisionConfig(intermediate_size=48, image_size=50, patch_size=8, **TOWER)
    return llava(tower=tower, pixels=pixels)
