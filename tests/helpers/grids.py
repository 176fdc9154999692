"""Layouts for tests of the eval suite: a uniform grid over any box of an image."""

import numpy as np
import torch

from kvfix.mlm.layout import Box, ImageSize, Layout


def grid_layout(
    image_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Layout:
    """A raster of equal cells over ``box`` (x0, y0, x1, y1), by default the whole image."""
    x0, y0, x1, y1 = box or (0.0, 0.0, float(image_hw[1]), float(image_hw[0]))
    rows, cols = grid_hw
    index = torch.arange(rows * cols).view(rows, cols)
    return Layout(
        index_HW=index,
        rows_HW=index,
        box=Box(x0, y0, x1, y1),
        ys_H=y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows,
        xs_W=x0 + (np.arange(cols) + 0.5) * (x1 - x0) / cols,
        image_hw=ImageSize(*image_hw),
        n_tokens=rows * cols,
        n_rows=rows * cols,
    )


def square_mask(
    image_hw: tuple[int, int], top: int, left: int, height: int, width: int
) -> np.ndarray:
    """uint8 mask with one rectangle of ones."""
    mask = np.zeros(image_hw, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def shuffled(f_SHWC: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same features at random cells, a different order for each site."""
    sites, rows, cols, channels = f_SHWC.shape
    order = torch.stack([torch.randperm(rows * cols, generator=generator) for _ in range(sites)])
    flat = f_SHWC.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, channels))
    return flat.view(f_SHWC.shape)
