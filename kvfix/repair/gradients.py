"""After the first step: does every part that should learn get a gradient?

A loss can fall although the adapter learns nothing: because a head alone trains, or because a hook
saw a tensor without a graph. So the first step is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GradientProbe:
    """Largest absolute gradient of each trainable parameter in the first optimizer step.

    `lora_A` gets none in the first step, as `lora_B` starts at zero; `lora_B` must.
    """

    def __init__(self, module: nn.Module):
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.largest = dict.fromkeys(trained, 0.0)
        self._handles = [p.register_hook(self._watch(name)) for name, p in trained.items()]

    def _watch(self, name: str):
        def hook(grad: Tensor) -> None:
            most = grad.detach().abs().amax() if grad.numel() else torch.zeros(())
            # NaN counts as one: the guard stops for it, and says so.
            self.largest[name] = max(self.largest[name], float(torch.nan_to_num(most, 1.0)))

        return hook

    def pool(self, largest: Callable[[Tensor], Tensor]) -> None:
        """Take in what other ranks saw: one whose examples reach less must not stop alone."""
        seen = torch.tensor(list(self.largest.values()))
        self.largest = dict(zip(self.largest, largest(seen).tolist(), strict=True))

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def without(self) -> list[str]:
        """Parameters that must have a gradient by now and have none."""
        return [n for n, most in self.largest.items() if "lora_A" not in n and not most > 0]

    def check(self) -> None:
        """Refuse to go on where a `lora_B`, or all of the heads, learn nothing."""
        adapter = [name for name in self.without() if "lora_" in name]
        if adapter:
            total = sum("lora_B" in name for name in self.largest)
            raise ValueError(
                f"expected a gradient in every adapted module in the first step, found none in "
                f"{len(adapter)} of {total}: {adapter[0]}; "
                "narrow lora.parts or lora.only to what the losses reach"
            )
