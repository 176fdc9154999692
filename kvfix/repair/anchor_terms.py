"""Terms that hold a repair near the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from kvfix.repair.anchors import gram_anchor, kl_anchor
from kvfix.repair.losses import Mean
from kvfix.repair.step import Step
from kvfix.repair.term import Head, LayerTerm, Needs, Term

Where = Literal["text", "answer", "both"]


@dataclass(frozen=True)
class KlTerm(Term):
    """KL from the base model's next-word distribution.

    Attributes:
        at: "text": tokens of text that are no answer; "answer": those of the answer, where it
            pulls against what the answer should become; "both".
        chunk: Positions at a time.
    """

    at: Where = "text"
    chunk: int = 32

    def __post_init__(self) -> None:
        """Refuse a place that is none."""
        super().__post_init__()
        if self.at not in get_args(Where):
            raise ValueError(f"expected at to be {', '.join(get_args(Where))}, found {self.at!r}")
        if self.chunk < 1:
            raise ValueError(f"expected a chunk of at least 1 position, found {self.chunk}")

    def needs(self) -> Needs:
        """Logits of both models."""
        return Needs(rows=True, base_rows=True)

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over positions, nats."""
        rows = step.rows
        if rows is None or rows.base_RW is None:
            raise ValueError("expected logits of the tuned and the base model, found none")
        both_R = rows.text_R | rows.answer_R
        chosen_R = {"text": rows.text_R, "answer": rows.answer_R, "both": both_R}[self.at]
        return kl_anchor(rows.logits_RW, rows.base_RW, chosen_R, chunk=self.chunk)


@dataclass(frozen=True)
class GramTerm(LayerTerm):
    """Cell-by-cell similarity of an image's values, held to the base model's.

    Attributes:
        chunk: Rows of the similarity matrix at a time.
    """

    chunk: int = 256

    def __post_init__(self) -> None:
        """Refuse an empty chunk."""
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"expected a chunk of at least 1 row, found {self.chunk}")

    def needs(self) -> Needs:
        """Values of both models."""
        return super().needs() | Needs(base_sites=frozenset({"value"}))

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over images, layers and pairs of cells of the squared change of cosine."""
        where = step.real_images()
        if not where:
            return step.zero("value", self.layers)
        tuned, base = (
            [take("value", self.layers, b, i).flatten(1, 2) for b, i in where]
            for take in (step.image, step.base_image)
        )
        counts = [v_SNC.shape[1] for v_SNC in tuned]
        return gram_anchor(torch.cat(tuned, 1), torch.cat(base, 1), counts, chunk=self.chunk)
