"""Means over samples that several ranks and micro-batches share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # rows of logits that are copied to float32 at a time


class Mean(NamedTuple):
    """A mean that can still be pooled with others."""

    total: Tensor  # sum over what counts, 0-d float32; 0 with a graph where nothing does
    weight: Tensor  # how many (or what weight) it is the sum of, 0-d float32 without a graph

    @property
    def value(self) -> Tensor:
        """Total over weight; 0, with a graph, where nothing counts."""
        return self.total / torch.where(self.weight > 0, self.weight, 1)


def masked_mean(x: Tensor, weight: Tensor) -> Mean:
    """Weighted mean inside a mask; what is outside may be anything, also NaN."""
    weight = weight.detach().float().expand_as(x)
    # A product would let a masked NaN through, as 0 * NaN is NaN.
    inside = torch.where(weight > 0, x.float() * weight, 0.0)
    return Mean(inside.sum(), weight.sum())


def answer_nll(logits_RW: Tensor, target_R: Tensor, answer_R: Tensor) -> Mean:
    """The language model's own loss: negative log-likelihood of the tokens of answers, nats.

    `answer_R` marks the rows that count.
    """
    at = answer_R.to(logits_RW.device).nonzero().flatten()
    parts = zip(at.split(CHUNK), target_R.to(logits_RW.device)[at].split(CHUNK), strict=True)
    totals = [
        F.cross_entropy(logits_RW[rows].float(), wanted, reduction="sum") for rows, wanted in parts
    ]
    # No answer in the batch: a zero that still has a graph.
    total = torch.stack(totals).sum() if len(at) else logits_RW[:1].float().sum() * 0
    return Mean(total, total.new_tensor(float(len(at))).detach())


def pooled(means: Sequence[Mean]) -> Mean:
    """All of them, one at least, as one: totals and weights added."""
    if not means:
        raise ValueError("expected at least one mean to pool, found none")
    return Mean(
        torch.stack([mean.total for mean in means]).sum(),
        torch.stack([mean.weight for mean in means]).sum(),
    )


def by_image(counts: Sequence[int], *cells: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each image's part of tensors whose last axis is the cells of all images, side by side."""
    return zip(*(x.split(counts, -1) for x in cells), strict=True)


def standardised(x_N: Tensor) -> Tensor:
    """Mean 0, standard deviation 1."""
    return (x_N - x_N.mean()) / x_N.std(correction=0).clamp(min=1e-6)


def mean_of_images(means: Sequence[Mean], *, like: Tensor) -> Mean:
    """Every image that has something counts once."""
    if not means:
        return Mean(like.float().sum() * 0, like.new_zeros((), dtype=torch.float32))
    values_I = torch.stack([mean.value for mean in means])
    return masked_mean(values_I, torch.stack([mean.weight > 0 for mean in means]))


def sum_over_rows(total: Callable[..., Tensor], rows: Sequence[Tensor], *, chunk: int) -> Tensor:
    """Sum of `total(*some rows)`, 0-d, over chunks of rows; only one chunk's intermediates are
    alive.

    `total` runs again in backward, a number of times that depends on the batch: it uses no random
    numbers and no parameter that could be partitioned over ranks. Of `rows`, equally long, the
    first may need a gradient; without any row the sum is 0 with a graph.
    """
    if not len(rows[0]):
        return rows[0].float().sum() * 0
    chunks = zip(*(x.split(chunk) for x in rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.stack([total(*part) for part in chunks]).sum()
    return torch.stack(
        [checkpoint(total, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks]
    ).sum()
