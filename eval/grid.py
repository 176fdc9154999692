"""Between the token grid and the original pixels, in both directions.

Shapes: S sites, H x W grid cells, height x width original pixels, C channels, F frequencies.
Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1), so its centre is
(j + 0.5, i + 0.5). A layout's ``box`` (x0, y0, x1, y1) is the part of the image that the whole grid
spans.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from kvfix.data.units import VOID
from kvfix.eval.probes.score import site_chunks
from kvfix.mlm.layout import Layout

PIXEL_CENTRE = 0.5  # points number pixels by their centres; grids measure from edges


class GridMask(NamedTuple):
    """A mask seen through the grid."""

    # Float32 in [0, 1], foreground area over valid area of each cell (0 where nothing is valid).
    share_HW: torch.Tensor
    # Float32 in [0, 1], share of the cell that is inside the image and not void.
    valid_HW: torch.Tensor


def cell_centres(layout: Layout) -> torch.Tensor:
    """(H, W, 2) float64 (x, y) of the cell centres in original pixels."""
    y_HW, x_HW = np.meshgrid(layout.ys_H, layout.xs_W, indexing="ij")
    return torch.from_numpy(np.stack((x_HW, y_HW), axis=-1).astype(np.float64))


def to_cells(xy_K2: np.ndarray | torch.Tensor, layout: Layout) -> torch.Tensor:
    """Points in original pixels -> (K, 2) float64 (row, col); cell (r, c) is centred at (r, c)."""
    xy = np.asarray(xy_K2, dtype=np.float64)
    at = layout.cell_of(xy[:, 0], xy[:, 1])
    return torch.from_numpy(np.stack((at.row, at.col), axis=1))


def sample_cells(f_SHWC: torch.Tensor, rc_K2: torch.Tensor) -> torch.Tensor:
    """Bilinear features (S, K, C), float32, at fractional (row, col), clamped at the edge."""
    _, rows, cols, _ = f_SHWC.shape
    limit = torch.tensor([rows - 1, cols - 1], dtype=rc_K2.dtype)
    rc = rc_K2.cpu().clamp(min=torch.zeros(2, dtype=rc_K2.dtype), max=limit)
    low = rc.floor().minimum((limit - 1).clamp(min=0))
    frac = (rc - low).float().to(f_SHWC.device)
    (r0, c0), step = low.long().T.to(f_SHWC.device), limit.clamp(max=1).long().tolist()
    r1, c1 = r0 + step[0], c0 + step[1]
    fr, fc = frac[:, 0, None], frac[:, 1, None]
    top = f_SHWC[:, r0, c0].float() * (1 - fc) + f_SHWC[:, r0, c1].float() * fc
    bottom = f_SHWC[:, r1, c0].float() * (1 - fc) + f_SHWC[:, r1, c1].float() * fc
    return top * (1 - fr) + bottom * fr


def _overlap(centres: np.ndarray, first: float, last: float, n_pixels: int) -> torch.Tensor:
    """(cells, n_pixels) share of each cell's extent that each pixel fills, float64.

    Cells meet half way between their centres (mosaics have gaps that no patch covers); the outer
    ones end where the grid's box does. Exact for edges inside a pixel.
    """
    between = (centres[1:] + centres[:-1]) / 2
    edges = torch.from_numpy(np.concatenate(([first], between, [last])).astype(np.float64))
    pixel = torch.arange(n_pixels, dtype=torch.float64)
    high = torch.minimum(edges[1:, None], pixel + 1)
    low = torch.maximum(edges[:-1, None], pixel)
    return (high - low).clamp(min=0) / (edges[1:] - edges[:-1])[:, None]


def to_grid(mask_HW: np.ndarray | torch.Tensor, layout: Layout) -> GridMask:
    """Soft patch labels: the exact foreground area share of each cell, also for fractional edges.

    The mask is (height, width) in original pixels: bool or 0/1, 255 = void (uncounted).
    """
    mask = check_mask(mask_HW, layout)
    x0, y0, x1, y1 = layout.box
    rows = _overlap(layout.ys_H, y0, y1, mask.shape[0])
    cols = _overlap(layout.xs_W, x0, x1, mask.shape[1])
    valid = rows @ (mask != VOID).double() @ cols.T
    foreground = rows @ ((mask != VOID) & (mask != 0)).double() @ cols.T
    share = torch.where(valid > 0, foreground / valid.clamp(min=1e-12), 0.0)
    return GridMask(share.float(), valid.float())


def check_mask(mask_HW: np.ndarray | torch.Tensor, layout: Layout) -> torch.Tensor:
    """The mask as a CPU tensor, uint8 or integer, checked against the layout's image size."""
    mask = torch.as_tensor(
        np.ascontiguousarray(mask_HW) if isinstance(mask_HW, np.ndarray) else mask_HW
    )
    if tuple(mask.shape) != tuple(layout.image_hw):
        raise ValueError(
            f"mask must have the image's (height, width) {tuple(layout.image_hw)}, got "
            f"{tuple(mask.shape)}"
        )
    return mask.cpu().to(torch.int16)


def _interpolation(cell_P: np.ndarray, n_cells: int) -> torch.Tensor:
    """(pixels, cells) linear interpolation weights, clamped at the outer centres."""
    cell = torch.from_numpy(np.clip(cell_P, 0, n_cells - 1))
    # A hat of half width one cell round each centre is exactly the pair of linear weights.
    hat = 1 - (cell[:, None] - torch.arange(n_cells, dtype=torch.float64)).abs()
    return hat.clamp(min=0).float()


class _Pixels(NamedTuple):
    """How the pixels of an image follow from the cells of its grid."""

    rows: torch.Tensor  # (height, H) float32 weights
    columns: torch.Tensor  # (width, W) likewise
    # (height, width) bool: pixels whose centre the grid does not span (a centre crop's); None
    # where it spans all.
    outside: torch.Tensor | None


@lru_cache(maxsize=16)
def _pixels(layout: Layout) -> _Pixels:
    height, width = layout.image_hw
    across = layout.cell_of(np.arange(width) + 0.5, np.zeros(width)).col
    down = layout.cell_of(np.zeros(height), np.arange(height) + 0.5).row
    x0, y0, x1, y1 = layout.box
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    outside = ~(((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1)))
    return _Pixels(
        _interpolation(down, layout.grid_hw[0]),
        _interpolation(across, layout.grid_hw[1]),
        outside if bool(outside.any()) else None,
    )


def fill_outside(map_SHW: torch.Tensor, layout: Layout, value: float) -> None:
    """Write a value, in place, where the grid does not span the pixels of (S, height, width)."""
    outside = _pixels(layout).outside
    if outside is not None:
        map_SHW[:, outside.to(map_SHW.device)] = value


def to_pixels(
    map_SHW: torch.Tensor, layout: Layout, *, outside: float | None = None
) -> torch.Tensor:
    """Bilinear upsampling of (S, H, W) maps to the original pixels, (S, height, width) float32.

    Cell centres are held (align_corners=False). Two small matrix products per map, as interpolation
    is separable; on any box, also one that is smaller than the image (centre crop) or larger
    (padding). Pixels that the grid does not span get `outside`; None repeats the edge value.
    """
    if tuple(map_SHW.shape[1:]) != tuple(layout.grid_hw):
        raise ValueError(
            f"map must be (sites, {layout.grid_hw[0]}, {layout.grid_hw[1]}), got "
            f"{tuple(map_SHW.shape)}"
        )
    rows, columns = (weights.to(map_SHW.device) for weights in _pixels(layout)[:2])
    height, width = layout.image_hw
    out = torch.empty(map_SHW.shape[0], height, width, device=map_SHW.device)
    for part in site_chunks(map_SHW.shape[0], height * width):
        # Columns first: the wide intermediate is then H x width, not height x W x width.
        wide = map_SHW[part].float() @ columns.T
        torch.bmm(rows.expand(len(wide), -1, -1), wide, out=out[part])
    if outside is not None:
        fill_outside(out, layout, outside)
    return out


def position_features(layout: Layout) -> torch.Tensor:
    """Fourier features of the cell centres alone, (1, H, W, 16) float32: the site ``position``.

    What a probe scores on these, it scores without having seen the image. The j-th of four
    frequencies runs through 2**j half periods over the image.
    """
    height, width = layout.image_hw
    xy = cell_centres(layout) / torch.tensor([width, height], dtype=torch.float64)
    angle = math.pi * xy[..., None] * 2.0 ** torch.arange(4, dtype=torch.float64)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(2).float()[None]
