"""Letters as small images, to recognise the label that is drawn beside a marker.

A label is looked for in several looks: a kind of letters at a height. What the letters of a
benchmark are drawn with is not known, so the kinds span thin and thick, drawn by pen and by font.

Shapes: L labels, F kinds of letters, h x w pixels of a template.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kvfix.data.shapes import GLYPHS

MARGIN = 2  # pixels around the ink that belong to a template: letters stand free
_BIG = 96  # pixels of a capital, before it is made small

# Pen strokes in units of the letter's height, y down: plotter letters, as OpenCV draws them.
_STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "A": (((0, 1), (0.38, 0), (0.76, 1)), ((0.14, 0.66), (0.62, 0.66))),
    "B": (
        ((0, 0.48), (0.42, 0.48), (0.58, 0.56), (0.66, 0.68), (0.66, 0.82), (0.58, 0.94), (0.4, 1))
        + ((0, 1), (0, 0), (0.4, 0), (0.56, 0.06), (0.62, 0.16), (0.62, 0.32), (0.56, 0.42))
        + ((0.42, 0.48),),
    ),
    "C": (
        ((0.72, 0.24), (0.64, 0.1), (0.5, 0), (0.28, 0), (0.12, 0.1), (0.03, 0.25), (0, 0.4))
        + ((0, 0.6), (0.03, 0.75), (0.12, 0.9), (0.28, 1), (0.5, 1), (0.64, 0.9), (0.72, 0.76)),
    ),
    "D": (
        ((0, 0), (0, 1), (0.34, 1), (0.52, 0.93), (0.63, 0.8), (0.68, 0.62), (0.68, 0.38))
        + ((0.63, 0.2), (0.52, 0.07), (0.34, 0), (0, 0)),
    ),
    "E": (((0.62, 0), (0, 0), (0, 1), (0.62, 1)), ((0, 0.48), (0.4, 0.48))),
    "F": (((0.62, 0), (0, 0), (0, 1)), ((0, 0.48), (0.4, 0.48))),
    "R": (
        ((0, 1), (0, 0), (0.42, 0), (0.58, 0.06), (0.64, 0.16), (0.64, 0.32), (0.58, 0.42))
        + ((0.42, 0.48), (0, 0.48)),
        ((0.34, 0.48), (0.66, 1)),
    ),
}
_BETWEEN = 0.26  # letters of a word


def _printed(name: str | None, text: str) -> Image.Image:
    """In a font of matplotlib's, or Pillow's own."""
    size = 1.4 * _BIG
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.load_default(size) if name is None else None
    font = font or ImageFont.truetype(str(folder / name), round(size))
    canvas = Image.new("L", (2 * _BIG * (len(text) + 1), 3 * _BIG))
    ImageDraw.Draw(canvas).text((_BIG, _BIG), text, fill=255, font=font)
    return canvas


def _plotted(pen: float, text: str) -> Image.Image | None:
    """By a round pen, its width a share of the letters' height."""
    canvas = Image.new("L", (2 * _BIG * (len(text) + 1), 3 * _BIG))
    draw, left, half = ImageDraw.Draw(canvas), float(_BIG), pen * _BIG / 2
    for letter in text:
        if letter not in _STROKES:
            return None
        for stroke in _STROKES[letter]:
            points = [(left + x * _BIG, _BIG + y * _BIG) for x, y in stroke]
            draw.line(points, fill=255, width=round(2 * half))
            for x, y in points:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
        left += (_BETWEEN + max(x for stroke in _STROKES[letter] for x, _ in stroke)) * _BIG
    return canvas


def _dotted(text: str) -> Image.Image | None:
    """As the scenes' own markers are labelled: 3 x 5 dots."""
    if any(letter not in GLYPHS for letter in text):
        return None
    columns = [
        [int(bits) << 1 >> (3 - column) & 1 for bits in GLYPHS[letter]]
        for letter in text
        for column in (0, 1, 2, 3)
    ]
    dots = np.kron(np.array(columns, np.uint8).T * 255, np.ones((20, 20), np.uint8))
    return Image.fromarray(dots)


KINDS: dict[str, Callable[[str], Image.Image | None]] = {
    "default": partial(_printed, None),
    "sans": partial(_printed, "DejaVuSans.ttf"),
    "bold": partial(_printed, "DejaVuSans-Bold.ttf"),
    "pen": partial(_plotted, 0.1),
    "marker": partial(_plotted, 0.2),
    "dots": _dotted,
}


@lru_cache(maxsize=64)
def _ink(kind: str, text: str) -> Image.Image | None:
    """Cropped to its ink; None where the kind has no such letter."""
    canvas = KINDS[kind](text)
    return None if canvas is None else canvas.crop(canvas.getbbox())


@lru_cache(maxsize=256)
def templates(labels: tuple[str, ...], height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ink of every kind and label at a height, and where it counts.

    Args:
        labels: Words of capital letters.
        height: Of a capital, pixels.

    Returns:
        ink_FLhw in [0, 1] and support_FLhw, 1 on the ink's box and `MARGIN` around it; both 0
        where a kind has no such letter. Boxes sit in the top left corner.
    """
    drawn = [[_small(kind, label, height) for label in labels] for kind in KINDS]
    width = max(small.shape[1] for row in drawn for small in row)
    shape = (len(KINDS), len(labels), height + 2 * MARGIN, width)
    ink_FLhw, support_FLhw = torch.zeros(shape), torch.zeros(shape)
    for f, row in enumerate(drawn):
        for i, small in enumerate(row):
            ink_FLhw[f, i, : small.shape[0], : small.shape[1]] = torch.from_numpy(small)
            support_FLhw[f, i, : small.shape[0], : small.shape[1]] = 1
    return ink_FLhw, support_FLhw


def _small(kind: str, label: str, height: int) -> np.ndarray:
    ink = _ink(kind, label)
    if ink is None:
        return np.zeros((0, 0), np.float32)
    size = (max(1, round(ink.width * height / ink.height)), height)
    small = np.asarray(ink.resize(size, Image.Resampling.BOX), np.float32) / 255
    return np.pad(small, MARGIN)

