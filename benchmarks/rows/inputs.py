"""What the rows run on: the shipped nano, scenes, and features of a real model's size.

Shapes: S sites, H x W grid cells, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.data.catalog import load_units
from kvfix.mlm.images.qwen import raster_layout
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.shipped import nano_dir


class Size(NamedTuple):
    """Sites, grid and channels of made features."""

    sites: int
    grid_hw: tuple[int, int]
    channels: int

    def __str__(self) -> str:
        rows, cols = self.grid_hw
        return f"{self.sites} layers, {self.channels} channels, {rows} x {cols} cells"


IMAGE = Size(28, (27, 27), 1024)  # SigLIP's 384 pixels; values of 8 heads of 128
CLIP = Size(28, (17, 30), 1024)  # 480 x 854 pixels in cells of 28
SMALLEST = Size(2, (4, 6), 8)


def nano() -> Mlm:
    """The shipped default model in float32."""
    return load_mlm(str(nano_dir()), dtype=torch.float32)


def first_unit(task: str) -> Any:
    """The first unit of a task of scenes."""
    [units] = load_units(("scenes",), tasks=[task], limit=1)
    return units.load(0)


def layout_of(image: Image.Image, grid_hw: tuple[int, int]) -> Layout:
    """A grid that spans the whole image."""
    return raster_layout((image.height, image.width), grid_hw, merge=1)


def features(
    images: Sequence[Image.Image], size: Size, objects: Sequence[np.ndarray] | None = None
) -> list[torch.Tensor]:
    """f_SHWC of each image: its colours, places and objects through random weights, and noise.

    `objects` are masks. Cells that look alike have features alike, as a model's values do, and no
    two are equal.
    """
    draws = torch.Generator().manual_seed(0)
    weight_SKC = torch.randn(size.sites, 6, size.channels, generator=draws)
    found = []
    for number, image in enumerate(images):
        rows, cols = size.grid_hw
        small = np.asarray(image.convert("RGB").resize((cols, rows), Image.Resampling.BOX))
        y_HW, x_HW = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij")
        object_HW = np.zeros((rows, cols))
        if objects is not None:
            mask = Image.fromarray(np.uint8(255 * (objects[number] == 1)))
            object_HW = np.asarray(mask.resize((cols, rows), Image.Resampling.BOX)) / 128
        given_HWK = np.dstack((small / 64 - 2, y_HW, x_HW, object_HW)).astype(np.float32)
        clean = torch.einsum("hwk,skc->shwc", torch.from_numpy(given_HWK), weight_SKC).tanh()
        found.append(clean + 0.5 * torch.randn(clean.shape, generator=draws))
    return found
