"""Models whose image keys are altered at known places, and the images to find that out with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import build, photo

from kvfix.diagnose.keys.statistics import Moments
from kvfix.eval.source import NEUTRAL
from kvfix.mlm.load import Mlm, Prompt, load_mlm

SIDE = 48


def tiny_mlm(family: str, folder: Path, *, seed: int = 0) -> Mlm:
    return load_mlm(str(build(family, folder / f"{family}_{seed}", seed=seed)), device="cpu")


def photos(n: int, *, first: int = 0, side: int = SIDE) -> list[Image.Image]:
    return [photo(side, side, seed=first + i) for i in range(n)]


def cell_positions(mlm: Mlm, image: Image.Image) -> torch.Tensor:
    """Sequence position of each grid cell, the same for all images of one size."""
    [[span]] = mlm.encode([Prompt((image,), NEUTRAL)]).images
    return span.positions_V[span.layout.index_HW.flatten()]


def no_keys(mlm: Mlm, image: Image.Image) -> np.ndarray:
    """(L, H, P), nothing chosen."""
    cells = len(cell_positions(mlm, image))
    return np.zeros((mlm.n_layers, mlm.n_kv_heads, cells), bool)


def random_keys(shape: tuple[int, ...], share: float, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@contextmanager
def hooked(
    modules: list[Any], change: Callable[[int, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Pass what each module puts out through `change(its number, output)`."""
    handles = [
        module.register_forward_hook(lambda m, args, out, i=i: change(i, out))
        for i, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def constant_keys(
    mlm: Mlm, chosen_LHP: np.ndarray, image: Image.Image, *, seed: int = 0
) -> Iterator[None]:
    """Give each chosen key one vector of its own, whatever the image."""
    at, d = cell_positions(mlm, image), mlm.head_dim
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*chosen_LHP.shape, d, generator=generator)

    def change(layer: int, out_BLC: torch.Tensor) -> torch.Tensor:
        out = out_BLC.clone()
        for head in range(chosen_LHP.shape[1]):
            cells = torch.from_numpy(np.flatnonzero(chosen_LHP[layer, head]))
            out[:, at[cells], head * d : (head + 1) * d] = vectors[layer, head, cells].to(out)
        return out

    with hooked([mlm.layer(i).self_attn.k_proj for i in range(mlm.n_layers)], change):
        yield


@contextmanager
def shared_direction(mlm: Mlm, length: float, *, seed: int = 0) -> Iterator[None]:
    """Add one large vector a layer to all keys, as training does; no bias of `k_proj` tells."""
    generator = torch.Generator().manual_seed(seed)
    width = mlm.n_kv_heads * mlm.head_dim
    added = torch.nn.functional.normalize(
        torch.randn(mlm.n_layers, mlm.n_kv_heads, mlm.head_dim, generator=generator), dim=-1
    ).reshape(mlm.n_layers, width)
    modules = [mlm.layer(i).self_attn.k_proj for i in range(mlm.n_layers)]
    with hooked(modules, lambda layer, out: out + length * added[layer].to(out)):
        yield


def moments_of(k_NLHPD: np.ndarray) -> Moments:
    """By the definition, in two passes."""
    mean = k_NLHPD.mean(0)
    m2 = ((k_NLHPD - mean) ** 2).sum((0, -1))
    return Moments(len(k_NLHPD), torch.from_numpy(mean), torch.from_numpy(m2))


def groups_of(k_NLHPD: np.ndarray, groups: int = 8) -> list[Moments]:
    return [moments_of(k_NLHPD[g::groups]) for g in range(groups)]


def gaussian_keys(
    n: int, spread_LHP: np.ndarray, length_LHP: np.ndarray, *, channels: int = 16, seed: int = 0
) -> np.ndarray:
    """(N, L, H, P, D): a mean of a given length, and noise of a given spread, at each cell."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(*length_LHP.shape, channels))
    mean *= (length_LHP / np.linalg.norm(mean, axis=-1))[..., None]
    noise = rng.normal(size=(n, *length_LHP.shape, channels)) / np.sqrt(channels)
    return mean + noise * spread_LHP[..., None]
