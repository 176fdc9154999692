"""Letters as small images, to recognise the label that is drawn beside a marker.

A label is looked for in several looks: a kind of letters at a height. What the letters of a
benchmark are drawn with is not known, so the kinds span thin and thick, drawn by pen and by font.

Shapes: L labels, F kinds of letters, h x w pixels of a template.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kvfix.data.scenes.shapes import GLYPHS

MARGIN = 2  # pixels around the ink that belong to a template: letters stand free
_BIG = 96  # pixels of a capital, before it is made small

# Pen strokes x,y in percent of the letter's height, y down: plotter letters, as OpenCV draws them.
_STROKES = {
    "A": "0,100 38,0 76,100 / 14,66 62,66",
    "B": "0,48 42,48 58,56 66,68 66,82 58,94 40,100 0,100 0,0 40,0 56,6 62,16 62,32 56,42 42,48",
    "C": "72,24 64,10 50,0 28,0 12,10 3,25 0,40 0,60 3,75 12,90 28,100 50,100 64,90 72,76",
    "D": "0,0 0,100 34,100 52,93 63,80 68,62 68,38 63,20 52,7 34,0 0,0",
    "E": "62,0 0,0 0,100 62,100 / 0,48 40,48",
    "F": "62,0 0,0 0,100 / 0,48 40,48",
    "R": "0,100 0,0 42,0 58,6 64,16 64,32 58,42 42,48 0,48 / 34,48 66,100",
}
_BETWEEN = 0.26  # letters of a word, in heights


def _printed(file: str, text: str) -> Image.Image:
    """In one of the fonts that come with matplotlib."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", file)
    return _typeset(ImageFont.truetype(str(path), round(1.4 * _BIG)), text)


def _default(text: str) -> Image.Image:
    """In the font that Pillow draws with unless told otherwise."""
    return _typeset(ImageFont.load_default(1.4 * _BIG), text)


def _typeset(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> Image.Image:
    canvas = Image.new("L", (2 * _BIG * (len(text) + 1), 3 * _BIG))
    ImageDraw.Draw(canvas).text((_BIG, _BIG), text, fill=255, font=font)
    return canvas


def _plotted(pen: float, text: str) -> Image.Image | None:
    """By a round pen, its width a share of the letters' height."""
    if any(letter not in _STROKES for letter in text):
        return None
    canvas = Image.new("L", (2 * _BIG * (len(text) + 1), 3 * _BIG))
    draw, left, half = ImageDraw.Draw(canvas), float(_BIG), pen * _BIG / 2
    for letter in text:
        right = left
        for stroke in _STROKES[letter].split(" / "):
            xy = [[int(n) * _BIG / 100 for n in point.split(",")] for point in stroke.split()]
            points = [(left + x, _BIG + y) for x, y in xy]
            draw.line(points, fill=255, width=round(2 * half))
            for x, y in points:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=255)
            right = max(right, *(x for x, _ in points))
        left = right + _BETWEEN * _BIG
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
    "default": _default,
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
    """ink_FLhw in [0, 1] of every kind and label, capitals as high as `height`, and support_FLhw.

    The support is 1 on the ink's box and `MARGIN` around it; both are 0 where a kind has no such
    letter. Boxes sit in the top left corner.
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
