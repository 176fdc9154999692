"""Tiny models whose tower is given tiles, of families after LLaVA."""

from __future__ import annotations

from typing import Any

from tiny_parts import PINPOINTS, TEMPLATE, TOWER, lm_config, tokenizer
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)


def llava_onevision(*, max_tiles: int = 9, image_size: int = 48, **vision: Any) -> tuple[Any, Any]:
    """SigLIP tower, no CLS; `max_tiles` small makes mosaics shrink."""
    tok, aspect = tokenizer(), f"anyres_max_{max_tiles}"
    tower = SiglipVisionConfig(
        **{
            "intermediate_size": 48,
            "image_size": image_size,
            "patch_size": 8,
            "vision_use_head": False,
        }
        | TOWER
        | vision
    )
    side = tower.image_size // tower.patch_size
    pinpoints = [[h * image_size // 48, w * image_size // 48] for h, w in PINPOINTS]
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=lm_config(tok, Qwen2Config),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect,
        vision_feature_layer=-1,
    )
    pixels = {"height": image_size, "width": image_size}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=pixels, image_grid_pinpoints=pinpoints),
        tok,
        LlavaOnevisionVideoProcessor(size=pixels),
        num_image_tokens=side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def idefics3(*, image_size: int = 48, smol: bool = False, split: bool = True) -> tuple[Any, Any]:
    """Tiles of 6 x 6 patches, merged 2 x 2; the longer side has four of them."""
    tok = tokenizer(
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    tower = {"intermediate_size": 48, "image_size": image_size, "patch_size": 8, **TOWER}
    made, model, processor, images = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMImageProcessor)
        if smol
        else (
            Idefics3Config,
            Idefics3ForConditionalGeneration,
            Idefics3Processor,
            Idefics3ImageProcessor,
        )
    )
    config = made(
        vision_config=tower,
        text_config=lm_config(tok, LlamaConfig).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = images(
        size={"longest_edge": 4 * image_size},
        max_image_size={"longest_edge": image_size},
        do_image_splitting=split,
    )
    given = (pixels, tok, SmolVLMVideoProcessor()) if smol else (pixels, tok)
    template = TEMPLATE.replace("IMAGE", "<image>")
    return model(config), processor(*given, image_seq_len=9, chat_template=template)


def internvl(*, text: tuple[Any, dict[str, Any]] = (Qwen2Config, {})) -> tuple[Any, Any]:
    """Up to six tiles of 6 x 6 patches, merged 2 x 2, and a thumbnail."""
    tok = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 48, "width": 48}
    config = InternVLConfig(
        vision_config={"intermediate_size": 48, "image_size": 48, "patch_size": 8, **TOWER},
        text_config=lm_config(tok, text[0], **text[1]).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, max_patches=6),
        tok,
        InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return InternVLForConditionalGeneration(config), processor


def gemma3(*, window: int = 512) -> tuple[Any, Any]:
    """One tile of 6 x 6 patches, averaged 2 x 2; layers 0 and 2 look back on a window."""
    tok = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    config = Gemma3Config(
        vision_config={
            "intermediate_size": 48,
            "image_size": 48,
            "patch_size": 8,
            "vision_use_head": False,
            **TOWER,
        },
        text_config=lm_config(
            tok, Gemma3TextConfig, head_dim=8, sliding_window=window, sliding_window_pattern=2
        ).to_dict(),
        image_token_index=tok.convert_tokens_to_ids("<soft>"),
        boi_token_index=tok.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tok.convert_tokens_to_ids("<eoi>"),
        mm_tokens_per_image=9,
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 48, "width": 48}),
        tok,
        image_seq_length=9,
        chat_template=TEMPLATE.replace("IMAGE", "<boi>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def paligemma(*, window: int = 512) -> tuple[Any, Any]:
    """One tile of 6 x 6 patches; no chat template of its own, Gemma 2 inside."""
    tok = tokenizer(image_token="<image>")
    tok.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    images = SiglipImageProcessor(size={"height": 48, "width": 48})
    images.image_seq_length = 36
    processor = PaliGemmaProcessor(images, tok)  # adds words of its own
    config = PaliGemmaConfig(
        vision_config={
            "intermediate_size": 48,
            "image_size": 48,
            "patch_size": 8,
            "vision_use_head": False,
            "projection_dim": 32,
            **TOWER,
        },
        text_config=lm_config(tok, Gemma2Config, head_dim=8, sliding_window=window).to_dict(),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor
