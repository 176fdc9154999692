"""Mean key of the images that one optimizer step has seen so far, for micro-batches of one image.

Shapes: I images, S layers, H KV heads, N cells, D channels of a head.
"""

from __future__ import annotations

from torch import Tensor


class StepKeys:
    """Sum of the keys at one resolution over the earlier micro-batches of the same step.

    All of them are of the same weights. A mean over earlier steps is not: keys move away from it
    by training alone, and a loss that asks for distance from it is met by keys that drift and
    depend on no image. That was seen: see `kvfix.repair.suppression`.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        self._number = -1
        self._total_SHND: Tensor | None = None
        self._n = 0

    def begin(self, number: int) -> None:
        """Forget what another optimizer step than `number` saw."""
        if number != self._number:
            self._number, self._total_SHND, self._n = number, None, 0

    @property
    def mean_SHND(self) -> Tensor | None:
        """The mean, without a graph; None before any image."""
        return None if self._total_SHND is None else self._total_SHND / self._n

    @property
    def excess(self) -> float:
        """Variance of the mean as a share of the variance of one key, 1 / n; 0 before any image."""
        return 1 / self._n if self._n else 0.0

    def observe(self, k_ISHND: Tensor) -> None:
        """Take in the keys of a micro-batch; no gradient is kept.

        Raises:
            ValueError: Keys of another resolution than those before.
        """
        if self._total_SHND is not None and k_ISHND.shape[1:] != self._total_SHND.shape:
            raise ValueError(
                f"expected keys of images x {tuple(self._total_SHND.shape)}, found "
                f"{tuple(k_ISHND.shape)}: a mean key is of one resolution"
            )
        total_SHND = k_ISHND.detach().float().sum(0)
        self._total_SHND = total_SHND if self._total_SHND is None else self._total_SHND + total_SHND
        self._n += len(k_ISHND)
