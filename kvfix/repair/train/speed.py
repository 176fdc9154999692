"""How fast a training goes: images and tokens a second, waiting for data, FLOP utilisation."""

from __future__ import annotations

import time

import torch

# Dense bf16 peak of one device in FLOP/s, from the makers' data sheets; by a part of its name.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A6000": 155e12,
    "4090": 165e12,
    "3090": 71e12,
}


def peak_flops(name: str) -> float | None:
    """Of a device by its name; None for one that is not in the table (every CPU)."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def flops_a_token(parameters: int) -> float:
    """Of a LoRA step: 2 forward and 2 backward a parameter and token.

    The frozen weights get no gradient of their own, so the usual 6 would claim work that is not
    done. Attention, the vision tower and a base pass are not counted: this is a lower bound.
    """
    return 4.0 * parameters


class Clock:
    """Rates since the last line of the log: this rank's seconds of waiting for data (`waited`), its
    `images`, and its `tokens` without padding.
    """

    def __init__(self, parameters: int, device: torch.device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak, self._flops = peak_flops(name), flops_a_token(parameters)
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self.waited, self.images, self.tokens = 0.0, 0.0, 0.0

    def read(self, images: float, tokens: float, ranks: int) -> dict[str, float]:
        """Of all ranks together, whose images and tokens these are; then start anew."""
        seconds = time.perf_counter() - self._start
        rates = {
            "images_per_s": images / seconds,
            "tokens_per_s": tokens / seconds,
            "data_wait": self.waited / seconds,
            "seconds": seconds,
        }
        if self._peak is not None:
            rates["mfu"] = self._flops * tokens / seconds / (self._peak * ranks)
        self._restart()
        return rates
