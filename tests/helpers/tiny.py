"""Tiny random models of the real Hugging Face classes, with processor, tokenizer and template.

`build(family, folder)` writes a checkpoint folder in well under a second.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_llava import (
    llava,
    llava_bare_clip,
    llava_dinov2,
    llava_full,
    llava_next,
    llava_siglip,
    llava_with,
)
from tiny_parts import PINPOINTS, SPECIALS, TEMPLATE, photo, rope, tokenizer
from tiny_raster import glm4v, qwen2_5_vl, qwen2_vl, qwen3_vl, qwen3_vl_moe
from tiny_tiles import gemma3, idefics3, internvl, llava_onevision, paligemma
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
    SmolLM3Config,
)

from kvfix.mlm import families

__all__ = ["PINPOINTS", "SPECIALS", "TEMPLATE", "photo", "tokenizer"]
FAMILIES = ("llava_onevision", "qwen2_5_vl", "llava_next", "llava")
# The other rows of the table, a new one too: slow tests leave them out.
MORE = tuple(name for name in families.FAMILIES if name not in FAMILIES)
EVERY = (*FAMILIES, *MORE)
BUILDERS = {
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "idefics3": idefics3,
    "idefics3_gaps": lambda: idefics3(image_size=52),
    "internvl": internvl,
    "internvl_qwen3": lambda: internvl(text=(Qwen3Config, {"head_dim": 8})),
    "gemma3": gemma3,
    "gemma3_near": lambda: gemma3(window=12),
    "glm4v": glm4v,
    "paligemma": paligemma,
    "paligemma_near": lambda: paligemma(window=12),
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
        Phi3Config, rope_parameters=rope(partial_rotary_factor=0.5), sliding_window=None
    ),
    "llava_qwen3": lambda: llava_with(Qwen3Config, head_dim=16, attention_bias=True),
    "llava_smollm3": lambda: llava_with(SmolLM3Config, no_rope_layer_interval=2),
    "smolvlm": lambda: idefics3(smol=True),
    "smolvlm_whole": lambda: idefics3(smol=True, split=False),
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
            elif parameter.any():
                parameter.data.mul_(4)
            else:  # Gemma 3's projector, InternVL's positions
                parameter.data.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
