"""A few optimizer steps of a LoRA on the tiny prompts, and the logits before and after them."""

from __future__ import annotations

import steps
import torch

from kvfix.mlm.load import Mlm

PARTS = ("lm", "projector", "vision")


def logits(mlm: Mlm) -> torch.Tensor:
    """At the last position."""
    with torch.no_grad():
        return mlm.model(**mlm.encode(steps.prompts()).inputs).logits[:, -1]


def train(mlm: Mlm, groups: list[dict], count: int = 3) -> None:
    """Some optimizer steps on the next word."""
    optimizer = torch.optim.AdamW(groups)
    encoded = mlm.encode(steps.prompts())
    labels = encoded.inputs["input_ids"]
    for _ in range(count):
        optimizer.zero_grad()
        mlm.model(**encoded.inputs, labels=labels).loss.backward()
        optimizer.step()
