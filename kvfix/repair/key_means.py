"""Running means of image keys over training steps, equal on all ranks.

Shapes: I images, S layers, H KV heads, N cells, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class KeyMeans(nn.Module):
    """Exponential running mean of the keys at one resolution.

    `observe` what every micro-batch saw; `advance` once an optimizer step. In between the mean
    stands still: every rank and micro-batch compares with the same mean, in whatever order, and a
    key is never compared with a mean that it is part of. (r is still a ratio of sums over the
    images of ONE micro-batch, so fewer images a micro-batch make it noisier.)

    It is no part of the model: do not attach it, or a bf16 engine would round it. Save its
    `state_dict` with the optimizer's, or a resumed run differs.
    """

    total_SHND: Tensor
    weight: Tensor
    squares: Tensor
    seen_SHND: Tensor
    n_seen: Tensor

    def __init__(self, shape_SHND: tuple[int, int, int, int], *, decay: float):
        """Start without a mean.

        Args:
            shape_SHND: Layers, KV heads, cells and channels of a head.
            decay: What stays of the mean at a step, in [0, 1).

        Raises:
            ValueError: Another decay.
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1), found {decay}")
        self.decay = decay
        self.register_buffer("total_SHND", torch.zeros(shape_SHND))
        self.register_buffer("seen_SHND", torch.zeros(shape_SHND))
        for name in ("weight", "squares", "n_seen"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def mean_SHND(self) -> Tensor | None:
        """The mean, without the start's pull to 0 (as Adam corrects it); None before any image."""
        return None if self.weight == 0 else self.total_SHND / self.weight.float()

    @property
    def excess(self) -> float:
        """Variance of the mean as a share of the variance of one key.

        The sum of the squared weights of all images in it: 1/n after one step of n images, about
        (1 - decay) / (1 + decay) / n in the long run. It takes images as drawn independently, and
        the keys as unmoved by training.
        """
        return float(self.squares / self.weight**2) if self.weight > 0 else 0.0

    def observe(self, k_ISHND: Tensor) -> None:
        """Take in the keys of a micro-batch; no gradient is kept."""
        if k_ISHND.shape[1:] != self.seen_SHND.shape:
            raise ValueError(
                f"expected keys of images x {tuple(self.seen_SHND.shape)}, found "
                f"{tuple(k_ISHND.shape)}: running means are of one resolution"
            )
        self.seen_SHND += k_ISHND.detach().float().sum(0).to(self.seen_SHND.device)
        self.n_seen += len(k_ISHND)

    def advance(self, all_reduce: Callable[[Tensor], object] | None = None) -> None:
        """Put what was observed since the last call into the mean.

        Args:
            all_reduce: Sums a tensor over ranks in place; every rank calls `advance` then, whether
                it saw an image or not.
        """
        if all_reduce is not None:
            all_reduce(self.seen_SHND)
            all_reduce(self.n_seen)
        if self.n_seen > 0:
            gain = 1 - self.decay
            self.total_SHND.mul_(self.decay).add_(self.seen_SHND / self.n_seen.float(), alpha=gain)
            self.weight.mul_(self.decay).add_(gain)
            self.squares.mul_(self.decay**2).add_(gain**2 / self.n_seen)
        self.seen_SHND.zero_()
        self.n_seen.zero_()
