"""Terms that hold a repair near the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kvfix.bounds import number
from kvfix.repair.anchors import gram_anchor, kl_anchor
from kvfix.repair.batch import Batch
from kvfix.repair.losses import Mean
from kvfix.repair.step import Step
from kvfix.repair.term import Head, LayerTerm, Needs, Term

Where = Literal["text", "answer", "both"]


@dataclass(frozen=True)
class Anchor(Term):
    """A term that asks the base model, which is a second forward pass.

    Attributes:
        every: Only in one of so many optimizer steps, with as many times the weight: the mean pull
            is the same, and the passes of the base model are fewer.
    """

    every: int = number(1, least=1)

    def idle(self, step: int) -> bool:
        """Between its steps."""
        return step % self.every != 0

    def weight_at(self, step: int) -> float:
        """Zero between its steps."""
        return 0.0 if self.idle(step) else self.every * super().weight_at(step)


@dataclass(frozen=True)
class KlTerm(Anchor):
    """KL from the base model's next-word distribution.

    Attributes:
        at: "text": tokens of text that are no answer; "answer": those of the answer, where it
            pulls against what the answer should become; "both".
        chunk: Positions at a time.
    """

    at: Where = "text"
    chunk: int = number(32, least=1)

    def __post_init__(self) -> None:
        """Refuse a place that is none."""
        super().__post_init__()
        if self.at not in get_args(Where):
            raise ValueError(f"expected at to be {', '.join(get_args(Where))}, found {self.at!r}")

    def needs(self) -> Needs:
        """Logits of both models."""
        return Needs(rows=True, base_rows=True)

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Positions of the chosen kind."""
        return int(self._chosen(batch.text_R, batch.answer_R).sum())

    def _chosen(self, text_R: Tensor, answer_R: Tensor) -> Tensor:
        return {"text": text_R, "answer": answer_R, "both": text_R | answer_R}[self.at]

    def loss(self, step: Step, head: Head | None) -> Mean:
        """Mean over positions, nats."""
        rows = step.rows
        if rows is None or rows.base_RW is None:
            raise ValueError("expected logits of the tuned and the base model, found none")
        chosen_R = self._chosen(rows.text_R, rows.answer_R)
        return kl_anchor(rows.logits_RW, rows.base_RW, chosen_R, chunk=self.chunk)


@dataclass(frozen=True)
class GramTerm(Anchor, LayerTerm):
    """Cell-by-cell similarity of an image's values, held to the base model's.

    Attributes:
        chunk: Rows of the similarity matrix at a time.
    """

    chunk: int = number(256, least=1)

    def needs(self) -> Needs:
        """Values of both models."""
        return super().needs() | Needs(base_sites=frozenset({"value"}))

    def amount(self, batch: Batch, keys_SHV: Tensor | None) -> float:
        """Images that are no stand-ins."""
        return batch.n_images

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
