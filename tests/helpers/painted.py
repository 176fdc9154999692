"""Pictures with one painted cell, and towers in which a cell is seen by itself alone."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from kvfix.mlm.load import Mlm

GREY, INK = 96, 116


def without_mixing(mlm: Mlm) -> None:
    """Attention puts out nothing, so a patch's features depend on its own pixels alone."""
    for name, parameter in mlm.vision.named_parameters():
        if re.search(r"\.(out_proj|o_proj|attn\.proj|projection_layer)\.", name):
            parameter.data.zero_()


def painted(size: tuple[int, int], layout, row: int, col: int) -> Image.Image:
    """Ink over one cell: the image pixels whose centres lie within half a cell of its centre."""
    ys, xs = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    near = (
        layout.cell_of(xs, np.full_like(xs, layout.ys_H[row])).col,
        layout.cell_of(np.full_like(ys, layout.xs_W[col]), ys).row,
    )
    mask = (np.abs(near[1] - row) <= 0.5)[:, None] & (np.abs(near[0] - col) <= 0.5)[None]
    assert mask.any(), "its centre is in the image, but no pixel is in the cell"
    pixels = np.full((*size, 3), GREY, dtype=np.uint8)
    pixels[mask] = INK
    return Image.fromarray(pixels)
