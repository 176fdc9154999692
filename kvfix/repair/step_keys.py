"""Moments of the keys that one optimizer step has seen so far, for small micro-batches.

Shapes: I images, S layers, H KV heads, N cells, D channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Of the keys of some images at one resolution, float32.

    Attributes:
        n: Images.
        mean_SHND: Mean key of each cell.
        m2_SHN: Sum over images of |k - mean|^2.
        squares_SHN: Sum over images of |k|^2.
    """

    n: int
    mean_SHND: Tensor
    m2_SHN: Tensor
    squares_SHN: Tensor

    @classmethod
    def of(cls, k_ISHND: Tensor) -> Moments:
        """Of a micro-batch, with its graph."""
        k_ISHND = k_ISHND.float()
        mean_SHND = k_ISHND.mean(0)
        m2_SHN = (k_ISHND - mean_SHND).square().sum((0, -1))
        return cls(len(k_ISHND), mean_SHND, m2_SHN, k_ISHND.square().sum((0, -1)))

    def and_(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque 1983: no small difference of large sums).

        Raises:
            ValueError: Keys of two resolutions.
        """
        if self.mean_SHND.shape != other.mean_SHND.shape:
            raise ValueError(
                f"expected keys of {tuple(self.mean_SHND.shape)}, found "
                f"{tuple(other.mean_SHND.shape)}: a mean key is of one resolution"
            )
        n = self.n + other.n
        off_SHND = other.mean_SHND - self.mean_SHND
        between_SHN = off_SHND.square().sum(-1) * (self.n * other.n / n)
        return Moments(
            n,
            self.mean_SHND + off_SHND * (other.n / n),
            self.m2_SHN + other.m2_SHN + between_SHN,
            self.squares_SHN + other.squares_SHN,
        )


class StepKeys:
    """The keys of the earlier micro-batches of the same step, as moments.

    All of them are of the same weights. A mean over earlier steps is not: keys move away from it
    by training alone, and a loss that asks for distance from it is met by keys that drift and
    depend on no image. That was seen: see `kvfix.repair.suppression`.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        self._number = -1
        self.seen: Moments | None = None

    def begin(self, number: int) -> None:
        """Forget what another optimizer step than `number` saw."""
        if number != self._number:
            self._number, self.seen = number, None

    @torch.no_grad()
    def observe(self, k_ISHND: Tensor) -> None:
        """Take in the keys of a micro-batch; no gradient is kept.

        Raises:
            ValueError: Keys of another resolution than those before.
        """
        found = Moments.of(k_ISHND)
        self.seen = found if self.seen is None else self.seen.and_(found)
