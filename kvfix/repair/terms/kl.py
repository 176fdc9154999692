"""A term that keeps the model's words near the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kvfix.bounds import number
from kvfix.repair.batch import Batch
from kvfix.repair.step import Step
from kvfix.repair.terms.heads import Head
from kvfix.repair.terms.mean import Mean, masked_mean, sum_over_rows
from kvfix.repair.terms.term import Anchor, Needs


def kl_anchor(logits_NW: Tensor, base_NW: Tensor, weight_N: Tensor, *, chunk: int = 32) -> Mean:
    """KL(base || tuned) of the next-word distributions, nats a position.

    The base leads: where it gives a word weight, the tuned model must (forward KL). Positions weigh
    `weight_N`; about 16 * chunk * W bytes are alive.
    """
    if logits_NW.shape != base_NW.shape or len(weight_N) != len(logits_NW):
        raise ValueError(
            f"expected logits of the same positions, found {tuple(logits_NW.shape)} tuned, "
            f"{tuple(base_NW.shape)} base and {len(weight_N)} weights"
        )
    weight_N = weight_N.detach().to(logits_NW.device, torch.float32)
    parts = (logits_NW, base_NW.detach(), weight_N)
    return Mean(sum_over_rows(_kl_sum, parts, chunk=chunk), weight_N.sum())


def _kl_sum(logits_NW: Tensor, base_NW: Tensor, weight_N: Tensor) -> Tensor:
    base = base_NW.float().log_softmax(-1)
    tuned = logits_NW.float().log_softmax(-1)
    kl_N = F.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)
    return masked_mean(kl_N, weight_N).total


Where = Literal["text", "answer", "both"]


@dataclass(frozen=True)
class KlTerm(Anchor):
    """KL from the base model's next-word distribution."""

    # "text": tokens of text that are no answer; "answer": those of the answer, where it pulls
    # against what the answer should become; "both".
    at: Where = "text"
    chunk: int = number(32, least=1)  # positions at a time

    def __post_init__(self) -> None:
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
