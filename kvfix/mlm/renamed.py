"""What transformers calls otherwise at the two ends of the supported range (5.20 and 5.24).

Delete each function when the older name leaves the range, and write the newer one where it is
called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def cache_argument(model: Any) -> str:
    """The argument that takes a model's key and value cache: `past_key_values` up to 5.23."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments or outputs of a forward pass, None without one."""
    for name in ("cache", "past_key_values"):
        if name in arguments:
            return arguments[name]
    return None


def recompute_layers(model: Any, *, reentrant: bool = False) -> None:
    """Compute activations again in backward instead of keeping them.

    `reentrant` is PyTorch's older way, which would hand the losses values without a gradient.
    """
    enable: Callable[[dict[str, bool]], None] | None
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # up to 5.23
        enable = model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
