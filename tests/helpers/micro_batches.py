"""Batches of the tiny models, where their tokens are, and passes under edits."""

from __future__ import annotations

import pytest
import tiny
import torch

from kvfix.mlm.intervene import intervene
from kvfix.mlm.load import Mlm, Prompt

LAYERS, KV_HEADS, SHARED = 3, 2, 2  # of every tiny model; query heads that share a KV head

every_model = pytest.mark.parametrize(
    ("name", "attn"), [(name, attn) for name in tiny.FAMILIES for attn in ("sdpa", "eager")]
)
# Beside them the families that slow tests leave out; where images see later tokens, too, other
# tests say what a block does.
causal_models = pytest.mark.parametrize(
    ("name", "attn"),
    [
        *((name, attn) for name in tiny.FAMILIES for attn in ("sdpa", "eager")),
        *((name, "sdpa") for name in tiny.MORE if name not in ("gemma3", "paligemma")),
    ],
)


def three_prompts(n: int = 3) -> list[Prompt]:
    """One image; two after a prefix; one tall image. Lengths differ, so a batch pads."""
    wide, square = tiny.photo(60, 100), tiny.photo(64, 64, seed=1)
    return [
        Prompt((wide,), "a cat"),
        Prompt((square, wide), "two dogs?", prefix="Look: "),
        Prompt((tiny.photo(150, 70, seed=2),), "tree"),
    ][:n]


def batches(mlm: Mlm):
    """Unpadded, left-padded, right-padded."""
    yield mlm.encode(three_prompts(1))
    yield mlm.encode(three_prompts())
    yield mlm.encode(three_prompts(), padding_side="right")


def forward(mlm: Mlm, encoded, edits=(), **options):
    with torch.no_grad(), intervene(mlm, encoded, edits):
        return mlm.model(**encoded.inputs, output_hidden_states=True, **options)


def image_at(encoded) -> torch.Tensor:
    """(B, L): True at image tokens."""
    at_BL = torch.zeros(encoded.inputs["input_ids"].shape, dtype=torch.bool)
    for sample, spans in enumerate(encoded.images):
        for span in spans:
            at_BL[sample, span.positions_V] = True
    return at_BL


def real_at(encoded) -> torch.Tensor:
    return encoded.inputs["attention_mask"].bool()


def text_at(encoded) -> torch.Tensor:
    """(B, L): True at tokens after the last image."""
    image_BL = image_at(encoded)
    after_BL = image_BL.flip(-1).cumsum(-1).flip(-1) == 0
    return after_BL & real_at(encoded)


def third_keys(encoded) -> list[list[torch.Tensor]]:
    """Every third token, from the fifth, of every image."""
    return [
        [(torch.arange(len(s.positions_V)) % 3 == 1) & (torch.arange(len(s.positions_V)) > 3)
         for s in spans]
        for spans in encoded.images
    ]  # fmt: skip


def keys_at(encoded, keys) -> torch.Tensor:
    at_BL = torch.zeros(encoded.inputs["input_ids"].shape, dtype=torch.bool)
    for sample, spans in enumerate(encoded.images):
        for span, of in zip(spans, keys[sample], strict=True):
            at_BL[sample, span.positions_V[of]] = True
    return at_BL


def count_hooks(mlm: Mlm) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in mlm.base.modules()
    )
