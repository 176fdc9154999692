"""The proof of a merge: the merged model's logits against the adapter's, on text and on an image.

Shapes: L positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kvfix.mlm.load import Mlm, Prompt

EXACT = 1e-4  # of logits, absolute: what float32 keeps through a model
_ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}  # of one weight, relative: half a
# unit of the last of 8 or 11 bits
_TEXT = "Which of the two is closer to the camera? (A) the red one (B) the blue one. Answer:"
_QUESTION = "What is in the picture?"
_KEPT = 16  # positions at the end of the image prompt
_TOKENS = 32  # spread over the vocabulary, behind the text


class Words(NamedTuple):
    """What a model says to the prompts."""

    ids_L: Tensor  # tokens of the text prompt; the merged model is asked the same
    text_LV: Tensor  # logits at every one of them
    image_LV: Tensor  # logits at the last positions of the image prompt
    products: int  # linear layers, each of which rounds once


class Difference(NamedTuple):
    """How far two models are apart on a prompt."""

    prompt: str  # "text" or "image"
    largest: float  # absolute difference of two logits
    allowed: float  # what it may be


def words_of(mlm: Mlm, *, like: Words | None = None) -> Words:
    """Ask a model, `like` another one whose words these are the same questions as."""
    ids_L = _tokens(mlm) if like is None else like.ids_L
    products = sum(isinstance(module, nn.Linear) for module in mlm.base.modules())
    return Words(ids_L, _on_text(mlm, ids_L), _on_image(mlm), products)


def compare(tuned: Words, merged: Words, saved: Words, dtype: torch.dtype) -> list[Difference]:
    """How far the saved model is from the adapter's by prompt; a ValueError where it is too far.

    What was loaded from disk has to say what was merged in memory: to `EXACT`, or to the last bit
    of the largest logit. In float32 both agree with the adapter's to `EXACT`, too. Below that the
    sum of weight and update is rounded, by at most u = 2^-9 of it in bfloat16, and so is every
    product after it; over n of them such errors add up like a random walk, to u sqrt(n) of the
    largest logit. They may differ by 4 u sqrt(n): right merges of tiny models reach 2.6 of it, a
    model without its adapter differs by more than ten times the bound (see test_merge.py).
    """
    u = _ROUNDING.get(dtype, 0.0)
    _check(_differences(merged, saved, 2 * u), "the merged model in memory")
    found = _differences(tuned, saved, 4 * u * tuned.products**0.5)
    _check(found, "the model with its adapter")
    return found


def _differences(one: Words, other: Words, share: float) -> list[Difference]:
    """By prompt; allowed is `EXACT`, or a share of the largest logit."""
    found = []
    for prompt, x_LV, y_LV in (
        ("text", one.text_LV, other.text_LV),
        ("image", one.image_LV, other.image_LV),
    ):
        allowed = max(EXACT, share * float(x_LV.abs().max()))
        alike = x_LV.shape == y_LV.shape
        largest = float((x_LV - y_LV).abs().max()) if alike else float("inf")
        found.append(Difference(prompt, largest, allowed))
    return found


def _check(found: list[Difference], whose: str) -> None:
    for one in found:
        if not one.largest <= one.allowed:  # also where it is not a number
            raise ValueError(
                f"expected the saved model to give the logits of {whose} within "
                f"{one.allowed:.2g}, found that they differ by {one.largest:.2g} on the "
                f"{one.prompt} prompt; nothing was written. Try --dtype float32, or serve base and "
                "adapter apart"
            )


def _tokens(mlm: Mlm) -> Tensor:
    """A text, then tokens from all over the vocabulary, and those that the adapter trained."""
    tokenizer = mlm.processor.tokenizer
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.added_tokens_decoder)  # an image's placeholder needs an image
    spread = np.linspace(0, len(tokenizer) - 1, _TOKENS).astype(int).tolist()
    added: list[int] = []
    settings: dict[str, Any] = {} if mlm.adapter is None else mlm.adapter.settings
    trained = settings.get("trainable_token_indices") or []
    for some in trained.values() if isinstance(trained, dict) else [trained]:
        added += some[:_TOKENS]
    ids = [*ids, *(n for n in (*spread, *added) if n not in special)]
    return torch.tensor(ids)


@torch.no_grad()
def _on_text(mlm: Mlm, ids_L: Tensor) -> Tensor:
    ids_1L = ids_L[None].to(mlm.device)
    inputs = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}
    return mlm.model(**inputs, use_cache=False).logits[0].float().cpu()


@torch.no_grad()
def _on_image(mlm: Mlm) -> Tensor:
    inputs = mlm.encode([Prompt((_picture(),), _QUESTION)]).inputs
    out = mlm.model(**inputs, use_cache=False, logits_to_keep=_KEPT)
    return out.logits[0].float().cpu()


def _picture() -> Image.Image:
    rows, cols = np.mgrid[0:168, 0:224]
    pixels = np.stack([rows * 255 // 168, cols * 255 // 224, (rows + cols) % 256], axis=-1)
    pixels[60:110, 80:150] = (200, 30, 40)
    return Image.fromarray(pixels.astype(np.uint8))
