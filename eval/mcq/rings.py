"""Find small circles drawn in pure red on a photo.

A drawn circle is a small, round hole of other colours enclosed by a band of red, with other colours
around it. Holes are looked for at several thresholds, so that neither the red of the scene nor the
losses of JPEG decide; then the band is measured along rays from the hole's centre.

Shapes: H x W pixels, N candidates, A rays, R steps along a ray. Points are (x, y), pixel centres at
integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

LEVELS = np.linspace(0.4, 0.9, 11)  # of purity: below is hole, above is band
WIDEST = 0.08  # largest radius of a hole as a share of the longer side
MIN_LINE = 0.5  # purity of the line's weakest tenth
MIN_CHROMA = 0.4  # of the line
MIN_CONTRAST = 0.1  # see `Ring`
MIN_MET = 0.75  # share of rays that meet the line
MAX_SWING = 0.15  # standard deviation of the line's radius over the turn, as a share of it
MAX_GOES_ON = 0.15  # share of rays on which red goes on past the line, as a letter's strokes do
_ANGLES_A = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_STEP = 0.25  # pixels between samples of a ray


class Ring(NamedTuple):
    """A drawn circle."""

    x: float  # centre, pixels
    y: float  # centre, pixels
    radius: float  # to the outer edge of the line, pixels
    line: float  # purity of the line's weakest tenth, in [0, 1]
    contrast: float  # by how much that is purer than the purer of its inside and its outside


class Redness(NamedTuple):
    """How red pixels are, float32 (H, W) in [0, 1]."""

    # 1 for (255, 0, 0) only; drops with luminance too, so it is as sharp as the image.
    purity: np.ndarray
    # Red over the stronger of green and blue; 0 for every grey, but JPEG blurs it.
    chroma: np.ndarray


def redness(image: Image.Image) -> Redness:
    """Both measures of an RGB image."""
    rgb_HW3 = np.asarray(image.convert("RGB"), np.float32) / 255
    red, other = rgb_HW3[..., 0], rgb_HW3[..., 1:].max(-1)
    return Redness(np.minimum(red, 1 - other), np.clip(red - other, 0, None))


def find_rings(red: Redness) -> list[Ring]:
    """Drawn red circles that the image's border does not cut, best first; of overlapping ones the
    best.

    Round red objects of the photo (a lamp, the bowl of a red letter) may be among them: what a ring
    means is for its label to say.
    """
    found: list[Ring] = []
    for x, y, hole in _holes(red.purity):
        ring = _measure(red, x, y, hole)
        if ring is not None:
            found.append(ring)
    kept: list[Ring] = []
    for ring in sorted(found, key=lambda r: -r.contrast):
        if all(np.hypot(ring.x - k.x, ring.y - k.y) > ring.radius + k.radius for k in kept):
            kept.append(ring)
    return kept


def _holes(purity_HW: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Centre and radius of small compact regions that purer pixels enclose, at every level."""
    widest = WIDEST * max(purity_HW.shape)
    for level in LEVELS:
        labels_HW, _ = ndimage.label(purity_HW < level)
        area = np.bincount(labels_HW.ravel())
        boxes = ndimage.find_objects(labels_HW)
        for number in np.flatnonzero((area >= 2) & (area <= np.pi * widest**2)):
            if number == 0:
                continue  # the red itself
            rows, cols = boxes[number - 1]
            height, width = rows.stop - rows.start, cols.stop - cols.start
            compact = area[number] >= 0.5 * height * width
            round_enough = max(height, width) <= 1.5 * min(height, width) + 1
            at_border = min(rows.start, cols.start) == 0 or (
                rows.stop == purity_HW.shape[0] or cols.stop == purity_HW.shape[1]
            )
            if not compact or not round_enough or at_border:
                continue
            y, x = ndimage.center_of_mass(labels_HW[rows, cols] == number)
            radius = float(np.sqrt(area[number] / np.pi))
            x, y = float(x + cols.start), float(y + rows.start)
            if _enclosed(purity_HW, x, y, radius):
                yield x, y, radius


def _enclosed(purity_HW: np.ndarray, x: float, y: float, hole: float) -> bool:
    """Whether red is met soon on all but one of eight rays: cheap, refuses nearly all holes."""
    radii = np.arange(hole, 2 * hole + 4, 0.5)
    return bool((_rays(purity_HW, x, y, radii)[:, ::6].max(0) >= 0.5).sum() >= 7)


def _rays(f_HW: np.ndarray, x: float, y: float, radii_R: np.ndarray) -> np.ndarray:
    """(R, A) bilinear samples around a centre."""
    rows = y + radii_R[:, None] * np.sin(_ANGLES_A)
    cols = x + radii_R[:, None] * np.cos(_ANGLES_A)
    return ndimage.map_coordinates(f_HW, [rows, cols], order=1, mode="nearest")


def _band(at_RA: np.ndarray, radii_R: np.ndarray, middle: int) -> tuple[np.ndarray, np.ndarray]:
    """Radius of the line's middle on each ray, and which rays meet the line at all."""
    near = np.abs(radii_R - radii_R[middle]) <= 0.5 * radii_R[middle] + 1
    weight_RA = np.clip(at_RA - 0.75 * np.median(at_RA[middle]), 0, None) * near[:, None]
    total_A = weight_RA.sum(0)
    return (weight_RA * radii_R[:, None]).sum(0) / np.maximum(total_A, 1e-6), total_A > 0


def _measure(red: Redness, x: float, y: float, hole: float) -> Ring | None:
    radii_R = np.arange(0, 3 * hole + 6, _STEP)
    near = (radii_R >= max(hole - 1.5, 0.5)) & (radii_R <= 2 * hole + 4)

    def line(at_RA: np.ndarray) -> int:
        return int(np.flatnonzero(near)[np.median(at_RA, 1)[near].argmax()])

    for _ in range(2):
        at_RA = _rays(red.purity, x, y, radii_R)
        band_A, met_A = _band(at_RA, radii_R, line(at_RA))
        if met_A.mean() < MIN_MET:
            return None
        # A centre that is off by d sees the radius swing by d over the turn.
        x += 2 * float((band_A * np.cos(_ANGLES_A))[met_A].mean())
        y += 2 * float((band_A * np.sin(_ANGLES_A))[met_A].mean())
    at_RA = _rays(red.purity, x, y, radii_R)
    middle = line(at_RA)
    band_A, met_A = _band(at_RA, radii_R, middle)
    profile_R = np.median(at_RA, 1)
    inside = float(profile_R[radii_R <= max(_STEP, 0.4 * hole)].min())
    past = np.flatnonzero(profile_R[middle:] < profile_R[middle] - 0.2)
    if len(past) == 0:
        return None  # red goes on: no line
    outside = float(profile_R[middle : middle + past[0] + int(1.5 / _STEP) + 1].min())
    edge = middle + int(np.argmax(profile_R[middle:] < (profile_R[middle] + outside) / 2))
    weakest = float(np.quantile(at_RA[middle], 0.1))
    chroma = float(np.median(_rays(red.chroma, x, y, radii_R[middle : middle + 1])))
    swing = float(np.std(band_A[met_A]) / radii_R[middle])
    radius = float(radii_R[edge])
    contrast = weakest - max(inside, outside)
    beyond_RA = _rays(red.purity, x, y, np.array([1.2, 1.35, 1.5]) * radius + 0.5)
    goes_on = float((beyond_RA.min(0) > 0.75 * weakest).mean())
    drawn = weakest >= MIN_LINE and chroma >= MIN_CHROMA and swing <= MAX_SWING
    alone = contrast >= MIN_CONTRAST and goes_on <= MAX_GOES_ON and met_A.mean() >= MIN_MET
    return Ring(x, y, radius, weakest, contrast) if drawn and alone else None
