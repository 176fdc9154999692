"""What scenes are painted with: shapes with named parts, colours, textures, grounds, styles.

Everything here is a pure function of its arguments. Coordinates of a shape are its own: the unit
disc, x to the right, y down; a scene places it by centre, radius and angle.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

COLOURS = {
    "red": (205, 45, 45),
    "green": (45, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (230, 210, 50),
    "orange": (235, 135, 35),
    "purple": (140, 55, 175),
    "cyan": (60, 195, 210),
    "white": (240, 240, 240),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
GROUNDS = ("even", "ramp", "rough", "ruled")
STYLES = ("flat", "sketch", "grainy", "soft", "mosaic", "poster")
MARK_RGB = (255, 0, 0)

# 3 x 5 letters for the markers of multiple-choice questions: rows of bits, top to bottom.
GLYPHS = {"A": "25755", "B": "65656", "C": "34443", "D": "65556", "R": "65655"}


def _disc(n: int = 28) -> np.ndarray:
    turn = np.arange(n) * 2 * np.pi / n
    return np.stack([np.sin(turn), -np.cos(turn)], 1)


def _star() -> np.ndarray:
    turn = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([reach * np.sin(turn), -reach * np.cos(turn)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1) / 17


def _points(*xy: tuple[float, float]) -> np.ndarray:
    return np.array(xy, dtype=float)


_B = 0.34  # half the width of the bars of a cross and of the shaft of an arrow
OUTLINES: dict[str, np.ndarray] = {
    "circle": _disc(),
    "square": _points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": _points((0, -1), (0.95, 0.75), (-0.95, 0.75)),
    "star": _star(),
    "cross": _points(
        *[(-_B, -1), (_B, -1), (_B, -_B), (1, -_B), (1, _B), (_B, _B)],
        *[(_B, 1), (-_B, 1), (-_B, _B), (-1, _B), (-1, -_B), (-_B, -_B)],
    ),
    "arrow": _points((0, -1), (0.85, 0), (_B, 0), (_B, 1), (-_B, 1), (-_B, 0), (-0.85, 0)),
    "heart": _heart(),
    "ring": _disc(),
}
HOLES = {"ring": 0.52}  # radius of the hole
SHAPES = tuple(OUTLINES)

# Named parts, the same in every instance of a shape; names hold as angles stay within 30 degrees.
PARTS: dict[str, np.ndarray] = {
    "circle": _points((0, -0.8), (0.8, 0), (0, 0.8), (-0.8, 0)),
    "square": OUTLINES["square"] * 0.85,
    "triangle": OUTLINES["triangle"] * 0.75,
    "star": OUTLINES["star"][::2] * 0.8,
    "cross": _points((0, -0.85), (0.85, 0), (0, 0.85), (-0.85, 0)),
    "arrow": _points((0, -0.8), (0.6, -0.12), (0, 0.85), (-0.6, -0.12)),
    "heart": _points((0, 0.75), (-0.6, -0.35), (0.6, -0.35), (0, -0.1)),
    "ring": _points((0, -0.76), (0.76, 0), (0, 0.76), (-0.76, 0)),
}


def placed(xy: np.ndarray, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Shape coordinates (N, 2) -> scene coordinates: turned by `angle` degrees, scaled, moved."""
    a = np.deg2rad(angle)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return xy @ turn * radius + np.asarray(centre)


def silhouette(
    shape: str, centre: tuple[float, float], radius: float, angle: float, size: int
) -> np.ndarray:
    """The pixels of a shape, bool (size, size); centre and radius in pixels."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    outline = placed(OUTLINES[shape], centre, radius, angle)
    draw.polygon(outline.flatten().tolist(), fill=255)
    if shape in HOLES:
        r = HOLES[shape] * radius
        draw.ellipse([centre[0] - r, centre[1] - r, centre[0] + r, centre[1] + r], fill=0)
    return np.asarray(canvas) > 0


def weave(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a texture shows its darker tone: bool, like u and v (shape coordinates)."""
    if texture == "striped":
        return np.mod(u * 2.2, 1) < 0.45
    if texture == "dotted":
        return (np.mod(u * 2.2, 1) - 0.5) ** 2 + (np.mod(v * 2.2, 1) - 0.5) ** 2 < 0.09
    if texture == "checked":
        return (np.floor(u * 2.2) + np.floor(v * 2.2)) % 2 < 1
    return np.zeros(np.broadcast_shapes(u.shape, v.shape), bool)


def paint_ground(kind: str, tone: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A muted ground of one tone, float32 (size, size, 3) in [0, 255]."""
    x = np.arange(size, dtype=np.float32) / size
    y = x[:, None]
    if kind == "ramp":
        a = rng.uniform(0, 2 * np.pi)
        return _toned(tone, 1 + 0.5 * (np.cos(a) * (x - 0.5) + np.sin(a) * (y - 0.5)))
    if kind == "rough":
        coarse = rng.normal(1, 0.13, (size // 8 + 1, size // 8 + 1)).astype(np.float32)
        return _toned(tone, coarse).repeat(8, 0).repeat(8, 1)[:size, :size]
    if kind == "ruled":
        light = np.where(np.mod((x if rng.random() < 0.5 else y) * 9, 1) < 0.15, 0.75, 1)
    else:
        light = np.ones(1)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = _toned(tone, light)
    return canvas


def _toned(tone: np.ndarray, light: np.ndarray) -> np.ndarray:
    return np.clip(tone * light[..., None], 0, 255).astype(np.float32)


def restyle(picture: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """Render the same picture, uint8 (size, size, 3), in one of `STYLES`; geometry stays."""
    image = Image.fromarray(picture)
    size = image.width
    if style == "sketch":
        edges = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.CONTOUR))
        return np.asarray(Image.blend(image, edges.convert("RGB"), 0.65))
    if style == "grainy":
        grain = rng.normal(0, 38, (size, size, 1))
        return np.clip(picture + grain, 0, 255).astype(np.uint8)
    if style == "soft":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(size / 48)))
    if style == "mosaic":
        few = size // 5
        return np.asarray(image.resize((few, few), 2).resize((size, size), 0))
    if style == "poster":
        return np.asarray(ImageOps.posterize(ImageOps.autocontrast(image), 2))
    return picture


def mark(image: Image.Image, marks: list[tuple[str, float, float]]) -> Image.Image:
    """Draw a red circle and its letter at each (label, x, y), in pixels; returns a new image."""
    out = image.copy()
    draw = ImageDraw.Draw(out)
    size = image.width
    r, dot = size * 0.045, max(1, round(size / 80))
    for label, x, y in marks:
        draw.ellipse([x - r, y - r, x + r, y + r], outline=MARK_RGB, width=max(1, round(size / 80)))
        left = x + r + dot if x < size * 0.85 else x - r - 4 * dot
        top = min(max(y - r - 3 * dot, 0), size - 5 * dot)
        for row, bits in enumerate(GLYPHS[label]):
            for column in range(3):
                if int(bits) >> (2 - column) & 1:
                    a, b = left + column * dot, top + row * dot
                    draw.rectangle([a, b, a + dot - 1, b + dot - 1], fill=MARK_RGB)
    return out
