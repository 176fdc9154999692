"""Muon: momentum whose singular values are made alike, so that rare directions are learned too.

After Jordan et al. 2024 (kellerjordan.github.io/posts/muon); updates are as large as AdamW's, so
that learning rates carry over (arXiv 2502.16982). PyTorch's own computes in bfloat16, which is
slow on a processor without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: singular values end within 0.7 to 1.2
STEPS = 5
SIZE = 0.2  # root mean square of an update for a learning rate of 1, about AdamW's


class Muon(torch.optim.Optimizer):
    """For matrices alone; those of one shape are computed together."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ):
        """Nothing is known of gradients yet."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append((p, p.grad))
            for matrices in alike.values():
                self._move(matrices, group)

    def _move(
        self, matrices: list[tuple[nn.Parameter, torch.Tensor]], group: dict[str, Any]
    ) -> None:
        """Matrices of one shape with their gradients; momentum looks one step ahead (Nesterov)."""
        ahead = []
        for p, gradient in matrices:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            mean.lerp_(gradient, 1 - group["momentum"])
            ahead.append(gradient.lerp(mean, group["momentum"]))
        rate = group["lr"] * SIZE * max(ahead[0].shape) ** 0.5
        for (p, _), update in zip(matrices, orthogonal(torch.stack(ahead)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """The nearest matrices whose singular values are about 1, by Newton-Schulz iterations."""
    a, b, c = QUINTIC
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
