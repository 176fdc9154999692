"""The vision towers: all that kvfix knows about one kind and not about another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Tower(NamedTuple):
    """One kind of vision tower."""

    leading: Callable[[Any], int]  # tokens before the first patch, from the tower's config
    any_size: bool = False  # interpolates its position embeddings; others take one size


TOWERS: dict[str, Tower] = {
    "clip_vision_model": Tower(lambda config: 1),
    "dinov2": Tower(lambda config: 1, any_size=True),
    "dinov2_with_registers": Tower(lambda config: 1 + config.num_register_tokens, any_size=True),
    "siglip_vision_model": Tower(lambda config: 0),
    "siglip2_vision_model": Tower(lambda config: 0),
}
