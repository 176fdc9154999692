"""Tiny random models of the real Hugging Face classes, with processor, tokenizer and template.

`build(family, folder)` writes a checkpoint folder in well under a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    SiglipVisionConfig,
    SmolLM3Config,
)

FAMILIES = ("llava_onevision", "qwen2_5_vl", "llava_next", "llava")
SPECIALS = [
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PINPOINTS = [[48, 48], [48, 96], [96, 48], [96, 96], [48, 144], [144, 48]]
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: every text has tokens, and no text is an unknown token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|im_end|>"
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS})
    return made


def _lm_config(tok: PreTrainedTokenizerFast, kind: Any, **more: Any) -> Any:
    pad, eos = tok.pad_token_id, tok.eos_token_id
    return kind(
        vocab_size=len(tok), pad_token_id=pad, eos_token_id=eos, bos_token_id=None, **_LM | more
    )


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, **more}


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(intermediate_size=48, image_size=48, patch_size=8, **_TOWER)


def _clip_pixels() -> dict[str, Any]:
    return {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


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
        | _TOWER
        | vision
    )
    side = tower.image_size // tower.patch_size
    pinpoints = [[h * image_size // 48, w * image_size // 48] for h, w in PINPOINTS]
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=_lm_config(tok, Qwen2Config),
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
            **_LM,
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
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """CLIP tower; CLS dropped."""
    tok = tokenizer()
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=_lm_config(tok, LlamaConfig),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **_clip_pixels()),
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
        vision_config=tower or _clip(),
        text_config=_lm_config(
            tok, kind, **{"hidden_size": width, "intermediate_size": 2 * width} | more
        ),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaProcessor(
        pixels or LlavaImageProcessor(**_clip_pixels()),
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
        intermediate_size=48, image_size=48, patch_size=8, vision_use_head=False, **_TOWER
    )
    pixels = LlavaImageProcessor(size={"height": 48, "width": 48}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels, strategy="full", extra=0)


def llava_dinov2() -> tuple[Any, Any]:
    """A DINOv2 tower whose processor stretches instead of cropping, to another size."""
    tower = Dinov2Config(mlp_ratio=2, image_size=64, patch_size=8, **_TOWER)
    pixels = LlavaImageProcessor(size={"height": 48, "width": 56}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels)


def llava_full() -> tuple[Any, Any]:
    """CLS kept, two feature layers side by side, pixels padded to a square."""
    pixels = LlavaImageProcessor(do_pad=True, **_clip_pixels())
    return llava(pixels=pixels, strategy="full", layer=[-2, -1])


def llava_with(kind: Any, **more: Any) -> tuple[Any, Any]:
    """Another language model under the same tower."""
    return llava(text=(kind, more))


def llava_bare_clip() -> tuple[Any, Any]:
    """The image processor of the first LLaVA-1.5 checkpoints; its crop is not whole patches."""
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 50, "width": 50})
    tower = CLIPVisionConfig(intermediate_size=48, image_size=50, patch_size=8, **_TOWER)
    return llava(tower=tower, pixels=pixels)


BUILDERS = {
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "llava_next": llava_next,
    "llava": llava,
    "llava_siglip": llava_siglip,
    "llava_dinov2": llava_dinov2,
    "llava_full": llava_full,
    "llava_bare_clip": llava_bare_clip,
    "llava_wide": lambda: llava(width=64),  # bitsandbytes wants whole blocks of 64
    "llava_gemma2": lambda: llava_with(Gemma2Config, head_dim=8, sliding_window=20),
    "llava_gemma3": lambda: llava_with(
        Gemma3TextConfig, head_dim=16, sliding_window=20, sliding_window_pattern=2
    ),
    "llava_glm4": lambda: llava_with(Glm4Config, head_dim=8),
    "llava_mistral": lambda: llava_with(MistralConfig, head_dim=8, sliding_window=20),
    "llava_phi3": lambda: llava_with(
        Phi3Config, rope_parameters=_rope(partial_rotary_factor=0.5), sliding_window=None
    ),
    "llava_qwen3": lambda: llava_with(Qwen3Config, head_dim=16, attention_bias=True),
    "llava_smollm3": lambda: llava_with(SmolLM3Config, no_rope_layer_interval=2),
    "onevision_shrunk": lambda: llava_onevision(max_tiles=1),
    "onevision_gaps": lambda: llava_onevision(image_size=52),
}


def build(
    name: str, folder: Path | str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the checkpoint folder of one of BUILDERS."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = BUILDERS[name]()
        # Fresh biases are zero and norms one: move them, or no test would see them dropped.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.data.mul_(4)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """A smooth random image: resampling changes it little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
