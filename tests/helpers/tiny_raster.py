"""Tiny models whose tower is given patches of whole images: Qwen's and GLM's."""

from __future__ import annotations

from typing import Any

from tiny_parts import LM, TEMPLATE, rope, tokenizer
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
    "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Patches of 4 px, merged 2 x 2, windows of 2 x 2 merged cells."""
    tok = tokenizer()
    ids = {
        name: tok.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tok),
            "pad_token_id": tok.pad_token_id,
            "eos_token_id": tok.eos_token_id,
            "bos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
            **LM,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 96 * 96},
    }
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tok,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=_TEMPLATE,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad"}
    names |= {"vision_start": "vision_start", "vision_end": "vision_end"}
    return {
        f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in names.items()
    }


def _mrope_lm(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    rotary = rope(mrope_section=[2, 1, 1])
    pad, eos = tok.pad_token_id, tok.eos_token_id
    ids = {"vocab_size": len(tok), "pad_token_id": pad, "eos_token_id": eos, "bos_token_id": None}
    return {"rope_parameters": rotary, **ids, **LM} | more


def _small_patches(kind: Any, image_processor: Any, video_processor: Any) -> Any:
    """A Qwen processor for patches of 4 px, merged 2 x 2."""
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 96 * 96},
    }
    return kind(
        image_processor(**pixels),
        tokenizer(),
        video_processor(**pixels),
        chat_template=_TEMPLATE,
    )


def qwen2_vl() -> tuple[Any, Any]:
    """As Qwen2.5-VL, without windows."""
    tok = tokenizer()
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        vision_config=tower | {"patch_size": 4, "spatial_merge_size": 2},
        text_config=_mrope_lm(tok),
        **_qwen_ids(tok),
    )
    processor = _small_patches(Qwen2VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen3_config(kind: Any, **text: Any) -> Any:
    tok = tokenizer()
    tower = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    levels = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    return kind(
        vision_config=tower
        | levels
        | {"patch_size": 4, "spatial_merge_size": 2, "out_hidden_size": 32},
        text_config=_mrope_lm(tok, head_dim=8, **text),
        **_qwen_ids(tok),
    )


def qwen3_vl() -> tuple[Any, Any]:
    """Deepstack after the first two layers of three, interleaved M-RoPE."""
    processor = _small_patches(Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor)
    return Qwen3VLForConditionalGeneration(_qwen3_config(Qwen3VLConfig)), processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    """The same with experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    processor = _small_patches(Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor)
    config = _qwen3_config(Qwen3VLMoeConfig, **experts)
    return Qwen3VLMoeForConditionalGeneration(config), processor


def glm4v() -> tuple[Any, Any]:
    """Patches of 4 px, merged 2 x 2 by a convolution; RoPE on six of eight channels."""
    named = {"image": "<|image|>", "video": "<|video|>"}
    named |= {f"{kind}_{end}": f"<|{word}_of_{kind}|>" for kind in ("image", "video")
              for end, word in (("start", "begin"), ("end", "end"))}  # fmt: skip
    tok = tokenizer(**{f"{name}_token": token for name, token in named.items()})
    config = Glm4vConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "out_hidden_size": 32,
            "intermediate_size": 48,
        },
        text_config=_mrope_lm(
            tok, rope_parameters=rope(mrope_section=[1, 1, 1], partial_rotary_factor=0.75)
        ),
        **{f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 96 * 96},
    }
    template = TEMPLATE.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    processor = Glm4vProcessor(
        Glm4vImageProcessor(**pixels), tok, Glm4vVideoProcessor(**pixels), chat_template=template
    )
    return Glm4vForConditionalGeneration(config), processor
