"""What every probe returns for one unit (S sites at once)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

MEMORY_ELEMENTS = 2**27
"""Upper bound for the float32 elements of one intermediate tensor (512 MiB); sites are chunked
to it."""


class UnitScore(NamedTuple):
    """Scores of one unit at S sites."""

    score_S: np.ndarray  # float64 in [0, 1]
    # Float64, the score that the probe's stated chance rule expects at each site.
    chance_S: np.ndarray
    # What the truth itself scores after passing through the model's grid. Strict for points; for
    # masks it is what perfect patch labels attain, which a lucky boundary may exceed.
    ceiling: float
    # Foreground intersection in pixels, for pooled IoU; None when the metric has none.
    inter_S: np.ndarray | None = None
    union_S: np.ndarray | None = None  # foreground union in pixels, same
    # Further per-site numbers by name, first axis S (or without a site axis if so documented).
    extra: dict[str, np.ndarray] = {}  # noqa: RUF012 - a NamedTuple default, never mutated
    # The prediction of the one site asked for with ``keep``, for overlays.
    kept: np.ndarray | tuple[np.ndarray, ...] | None = None


def site_chunks(n_sites: int, elements_per_site: int) -> Iterator[slice]:
    """Slices of sites such that a chunk's largest intermediate stays under MEMORY_ELEMENTS."""
    step = max(1, MEMORY_ELEMENTS // max(1, elements_per_site))
    for start in range(0, n_sites, step):
        yield slice(start, min(start + step, n_sites))


def check_sites(*features: torch.Tensor) -> int:
    """Common number of sites S of several f_SHWC; a ValueError if they differ in S or C."""
    shapes = [tuple(f.shape) for f in features]
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"features must be (sites, rows, columns, channels), got shapes {shapes}")
    if len({(shape[0], shape[3]) for shape in shapes}) != 1:
        raise ValueError(
            f"sites and channels must agree between the images of a unit, got {shapes}"
        )
    return shapes[0][0]


def check_keep(keep: int | None, n_sites: int) -> None:
    """Raise IndexError-like ValueError early, before any work is done."""
    if keep is not None and not 0 <= keep < n_sites:
        raise ValueError(f"keep must be a site index in 0..{n_sites - 1}, got {keep}")
