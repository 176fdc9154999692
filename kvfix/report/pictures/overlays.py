"""Predictions drawn on the images, so that a person sees what a score means. PIL and numpy only.

Small images are enlarged by a whole factor without interpolation: a blurred pixel would be an
invented one. Points are (x, y) in pixels of the original image, pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kvfix.data.units import VOID

TINT = (240, 150, 30)  # prediction
RIGHT = (0, 200, 120)  # bluish green and vermilion stay apart for colour-blind eyes,
WRONG = (245, 80, 40)  # and a wrong point is a cross, not a disc
LIGHT, DARK = (255, 255, 255), (15, 15, 20)
SIDE = 320  # pixels of a picture's short side
FRAMES = 5  # of a clip
# Okabe and Ito's colours, brightest first; object k of a clip has OBJECTS[(k - 1) % 7].
OBJECTS = (
    (240, 150, 30),
    (86, 180, 233),
    (0, 190, 130),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)


def mask_overlay(
    image: Image.Image,
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    min_side: int = SIDE,
) -> Image.Image:
    """The predicted mask as an edged tint, the true one as a white outline, void pixels grey.

    Masks are (height, width) of the image; in the truth 0 is ground, 255 void, anything else the
    object. The short side is enlarged to at least `min_side` pixels; a long side above twice that
    is reduced to it, unless the short one would be too short.
    """
    _check(image, predicted, "predicted")
    _check(image, truth, "truth")
    labels = predicted.astype(bool).astype(np.uint8)
    return Image.fromarray(_painted(image, labels, truth, min_side, (TINT,)))


def match_overlay(
    source: Image.Image,
    target: Image.Image,
    source_xy: np.ndarray,
    predicted_xy: np.ndarray,
    truth_xy: np.ndarray,
    correct: np.ndarray,
    *,
    min_side: int = SIDE,
) -> Image.Image:
    """Source and target side by side, a line from each point to where the probe found it.

    A right match is a green line that ends in a disc. A wrong one is a red line that ends in a
    cross, and a thin line goes on to the ring where the point really is. Points are float (K, 2) in
    original pixels, `correct` is bool (K,); `min_side` is as in `mask_overlay`.
    """
    shapes = [np.shape(a) for a in (source_xy, predicted_xy, truth_xy, correct)]
    k = len(correct)
    if shapes != [(k, 2)] * 3 + [(k,)]:
        raise ValueError(f"expected three arrays ({k}, 2) of points and one ({k},), got {shapes}")
    left, right = _scaled(source, min_side), _scaled(target, min_side)
    canvas, starts = _side_by_side([left.image, right.image], gap=8)
    draw = ImageDraw.Draw(canvas)
    for a, p, t, good in zip(source_xy, predicted_xy, truth_xy, correct, strict=True):
        start = _moved(left.point(a), starts[0])
        found, true = (_moved(right.point(q), starts[1]) for q in (p, t))
        colour = RIGHT if good else WRONG
        draw.line([start, found], fill=DARK, width=5)
        draw.line([start, found], fill=colour, width=3)
        if not good:
            draw.line([found, true], fill=LIGHT, width=1)
            _ring(draw, true)
        _disc(draw, start, colour)
        (_disc if good else _cross)(draw, found, colour)
    return canvas


def clip_overlay(
    frames: Sequence[Image.Image],
    predicted: Sequence[np.ndarray],
    *,
    min_side: int = SIDE // 2,
) -> Image.Image:
    """A strip of `FRAMES` frames, evenly spaced from the first to the last, one tint an object.

    Frames are RGB, of which only the shown ones are read; masks are uint8 (height, width), 0
    ground, 1..n objects, 255 void. `min_side` is as in `mask_overlay`, for one frame.
    """
    count = len(frames)
    if count == 0 or len(predicted) != count:
        found = f"{count} frames, {len(predicted)} predictions"
        raise ValueError(f"expected as many masks as frames and at least one, got {found}")
    tiles = []
    for t in np.unique(np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)):
        frame, labels = frames[t], np.asarray(predicted[t])
        _check(frame, labels, f"predicted[{t}]")
        labels = np.where(labels == VOID, 0, labels)
        painted = _painted(frame, labels, np.zeros_like(labels), min_side, OBJECTS)
        tiles.append(Image.fromarray(painted))
    return _side_by_side(tiles, gap=4)[0]


def heat_overlay(image: Image.Image, share_HW: np.ndarray) -> Image.Image:
    """Shares in [0, 1] on a grid that spans the whole image, dark blue to yellow, over its grey."""
    from matplotlib import colormaps

    scaled = _scaled(image, SIDE).image
    grey = np.asarray(scaled.convert("L").convert("RGB"), dtype=np.float64)
    heat = Image.fromarray(colormaps["cividis"](share_HW, bytes=True)[..., :3])
    colour = np.asarray(heat.resize(scaled.size, Image.Resampling.NEAREST), dtype=np.float64)
    return Image.fromarray((0.4 * grey + 0.6 * colour).round().astype(np.uint8))


class _Scaled(NamedTuple):
    image: Image.Image
    x: float
    y: float

    def point(self, xy: np.ndarray) -> tuple[float, float]:
        """Where the centre of an original pixel lies now."""
        return (float(xy[0]) + 0.5) * self.x - 0.5, (float(xy[1]) + 0.5) * self.y - 0.5


def _scaled(image: Image.Image, min_side: int) -> _Scaled:
    image = image.convert("RGB")
    (width, height), max_side = image.size, 2 * min_side
    if min(width, height) < min_side:
        # A long thin image may stop short of min_side, but never of its own size.
        factor = max(1, min(-(-min_side // min(width, height)), 2 * max_side // max(width, height)))
        return _Scaled(image.resize((width * factor, height * factor), 0), factor, factor)
    ratio = max(min_side / min(width, height), min(1.0, max_side / max(width, height)))
    size = round(width * ratio), round(height * ratio)
    return _Scaled(image.resize(size, Image.Resampling.LANCZOS), size[0] / width, size[1] / height)


def _painted(
    image: Image.Image,
    labels: np.ndarray,
    truth: np.ndarray,
    min_side: int,
    colours: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """uint8 (height, width, 3): label k tinted colours[k - 1], each true object outlined."""
    small = _scaled(image, min_side).image
    pixels = np.asarray(small).astype(np.float32)
    labels, truth = (_resized(m, small.size) for m in (labels, truth))
    # The ground loses half of its colour, so that a tint is read as a prediction on any image.
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = np.where((labels > 0)[..., None], pixels, 0.5 * pixels + 0.5 * grey)
    for k in np.unique(labels[labels > 0]):
        colour = np.array(colours[(int(k) - 1) % len(colours)], dtype=np.float32)
        pixels[labels == k] = 0.45 * pixels[labels == k] + 0.55 * colour
        # A full-colour edge: a tint alone drowns on an object of its own colour.
        pixels[(labels == k) & _grown(labels != k, 2)] = colour
    pixels[truth == VOID] = 0.3 * pixels[truth == VOID] + 0.7 * 127
    for k in np.unique(truth[(truth > 0) & (truth != VOID)]):
        inside = truth == k
        pixels[_grown(inside, 2) & ~inside] = DARK
        pixels[inside & _grown(~inside, 2)] = LIGHT
    return pixels.round().clip(0, 255).astype(np.uint8)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(mask, dtype=np.uint8)).resize(size, 0))


def _grown(mask_HW: np.ndarray, by: int) -> np.ndarray:
    """The mask and all pixels within `by` steps (up, down, left, right) of it."""
    for _ in range(by):
        grown = mask_HW.copy()
        grown[1:] |= mask_HW[:-1]
        grown[:-1] |= mask_HW[1:]
        grown[:, 1:] |= mask_HW[:, :-1]
        grown[:, :-1] |= mask_HW[:, 1:]
        mask_HW = grown
    return mask_HW


def _side_by_side(
    images: Sequence[Image.Image], *, gap: int
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """One RGBA image, transparent between the parts, and where each part starts."""
    height = max(i.height for i in images)
    width = sum(i.width for i in images) + gap * (len(images) - 1)
    canvas, x, starts = Image.new("RGBA", (width, height)), 0, []
    for image in images:
        starts.append((x, (height - image.height) // 2))
        canvas.paste(image, starts[-1])
        x += image.width + gap
    return canvas, starts


def _moved(xy: tuple[float, float], by: tuple[int, int]) -> tuple[float, float]:
    return xy[0] + by[0], xy[1] + by[1]


def _disc(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour: tuple) -> None:
    draw.ellipse(_around(at, 5), fill=colour, outline=DARK)


def _cross(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour: tuple) -> None:
    x0, y0, x1, y1 = _around(at, 5)
    for width, fill in ((6, DARK), (3, colour)):
        draw.line([(x0, y0), (x1, y1)], fill=fill, width=width)
        draw.line([(x0, y1), (x1, y0)], fill=fill, width=width)


def _ring(draw: ImageDraw.ImageDraw, at: tuple[float, float]) -> None:
    draw.ellipse(_around(at, 7), outline=DARK, width=4)
    draw.ellipse(_around(at, 6), outline=LIGHT, width=2)


def _around(at: tuple[float, float], r: int) -> list[float]:
    return [at[0] - r, at[1] - r, at[0] + r, at[1] + r]


def _check(image: Image.Image, mask: np.ndarray, name: str) -> None:
    expected = (image.height, image.width)
    if np.shape(mask) != expected:
        raise ValueError(f"{name}: expected the image's {expected}, got {np.shape(mask)}")
