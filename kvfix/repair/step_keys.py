"""The chosen keys that one optimizer step has seen so far, for small micro-batches.

Shapes: I images, M chosen keys of an image, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class StepKeys:
    """Keys of the earlier micro-batches of the same step, without a graph.

    All of them are of the same weights. A mean over earlier steps is not: keys move away from it
    by training alone, and a loss that asks for distance from it is met by keys that drift and
    depend on no image. That was seen: see `kvfix.repair.suppression`.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        self._number = -1
        self._seen: list[Tensor] = []

    def begin(self, number: int) -> None:
        """Forget what another optimizer step than `number` saw."""
        if number != self._number:
            self._number, self._seen = number, []

    def observe(self, k_IMD: Tensor) -> None:
        """Take in the keys of a micro-batch."""
        self._seen.append(k_IMD.detach())

    @property
    def k_IMD(self) -> Tensor | None:
        """All that was taken in; None before any image."""
        return torch.cat(self._seen) if self._seen else None
