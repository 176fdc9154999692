"""How language models make keys and values, and what becomes of a key before it is attended to.

A cache holds values as they are projected, and keys after their norm (where there is one) and
RoPE. The site `key` is read after the norm and before RoPE, so that it is what RoPE turns.

Shapes: B samples, L positions, N kept positions, S layers, H heads, D channels of a
    head, C = H * D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Part = Literal["query", "key", "value"]


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE that turns channel i with channel i + D / 2 (Llama and most others)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE that turns channel 2i with channel 2i + 1."""
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def turn_pairs_by_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same where angle i stands at i and i + D / 2 of `cos` and `sin` (GLM-4)."""
    cos, sin = (y[..., : y.shape[-1] // 2].repeat_interleave(2, dim=-1) for y in (cos, sin))
    return turn_pairs(x, cos, sin)


_SEPARATE = r"self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
_FUSED = r"self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj"
_FUSED_MLP = r"self_attn\.[qkvo]_proj|mlp\.(gate_up|down)_proj"


@dataclass(frozen=True)
class LanguageModel:
    """One kind of language model."""

    lora: str = _SEPARATE  # LoRA targets of a decoder layer, a regex on the names inside it
    # One `qkv_proj` makes queries, keys and values; else `q_proj`, `k_proj`, `v_proj`.
    fused: bool = False
    # Shape in which `q_norm` and `k_norm` see heads; empty: there are no such norms.
    norm: Literal["", "BLHD", "BHLD"] = ""
    # RoPE on the channels that it turns (the first ones, where it does not turn all).
    turn: Callable[[Tensor, Tensor, Tensor], Tensor] = turn_halves
    # Whether a layer applies RoPE at all, from the text config and the layer.
    rotates: Callable[[Any, int], bool] = lambda config, layer: True

    def rotate(self, x_SNC: Tensor, cos_ND: Tensor, sin_ND: Tensor, *, head_dim: int) -> Tensor:
        """Queries or keys, heads side by side, after RoPE.

        `cos_ND` and `sin_ND` are the model's, one row per position; narrower than a head where RoPE
        turns its first channels only.
        """
        x_SNHD, width = x_SNC.unflatten(-1, (-1, head_dim)), cos_ND.shape[-1]
        turned = self.turn(x_SNHD[..., :width], cos_ND[:, None], sin_ND[:, None])
        return torch.cat((turned, x_SNHD[..., width:]), dim=-1).flatten(-2)


LANGUAGE_MODELS = {
    "gemma": LanguageModel(),
    "gemma2": LanguageModel(),
    "gemma3_text": LanguageModel(norm="BHLD"),
    "glm4": LanguageModel(lora=_FUSED_MLP, turn=turn_pairs_by_halves),
    "glm4v_text": LanguageModel(lora=_FUSED_MLP, turn=turn_pairs),
    "llama": LanguageModel(),
    "mistral": LanguageModel(),
    "phi3": LanguageModel(lora=_FUSED, fused=True),
    "qwen2": LanguageModel(),
    "qwen2_5_vl_text": LanguageModel(),
    "qwen2_vl_text": LanguageModel(),
    "qwen3": LanguageModel(norm="BLHD"),
    "qwen3_moe": LanguageModel(norm="BLHD"),
    "qwen3_vl_moe_text": LanguageModel(norm="BLHD"),
    "qwen3_vl_text": LanguageModel(norm="BLHD"),
    "smollm3": LanguageModel(rotates=lambda config, layer: bool(config.no_rope_layers[layer])),
}


def language_model_of(model_type: str, *, where: str) -> LanguageModel:
    """The row of a text config's model type; `where` is named in the error."""
    if model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"{where}: expected a language model out of {', '.join(LANGUAGE_MODELS)}, found "
            f"{model_type!r}"
        )
    return LANGUAGE_MODELS[model_type]


class Reading(NamedTuple):
    """Where queries, keys or values of a layer are read."""

    module: nn.Module  # whose output holds them
    # That output as (B, L, C); from a fused projection its part, also of a bias.
    take: Callable[[Tensor], Tensor]
    # What is added to every one of them; None where nothing is, or a norm follows.
    bias: Tensor | None


def reading(attention: Any, kind: LanguageModel, part: Part, *, widths: tuple[int, int]) -> Reading:
    """Where an attention layer's queries, keys (both before RoPE) or values are read.

    `self_attn` is looked up anew, as PEFT swaps its modules; `widths` are channels of all query
    heads and of all KV heads.
    """
    if kind.norm and part != "value":
        module = attention.get_submodule("q_norm" if part == "query" else "k_norm")
        if kind.norm == "BLHD":
            return Reading(module, lambda x_BLHD: x_BLHD.flatten(-2), None)
        return Reading(module, lambda x_BHLD: x_BHLD.transpose(1, 2).flatten(-2), None)
    if kind.fused:
        queries, keys = widths
        start = {"query": 0, "key": queries, "value": queries + keys}[part]
        inside = slice(start, start + (queries if part == "query" else keys))
        module = attention.qkv_proj
        bias = None if module.bias is None else module.bias[inside]
        return Reading(module, lambda x_BLC: x_BLC[..., inside], bias)
    module = attention.get_submodule(f"{part[0]}_proj")
    return Reading(module, lambda x_BLC: x_BLC, module.bias)


def sliding_window(config: Any, layer: int) -> int | None:
    """Positions that a layer's queries look back on, their own included; None for all of them."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
