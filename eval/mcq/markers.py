"""Find the labelled circles that a benchmark drew on its images: REF, A, B, C, D.

BLINK's correspondence tasks draw a red circle and a red label beside it and publish no coordinates.
A marker is a drawn ring (see ``rings``) whose label is read by matching letters (see ``glyphs``) in
the circle's surroundings. All labels of an image are read together, in one look and each by another
ring, because one program drew them; and an image counts only if its reading beats every other
reading by a margin. Everything else is no reading at all: never a guess.

Shapes: N rings, L labels, K looks (kinds of letters x heights), h x w pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from kvfix.eval.mcq.glyphs import MARGIN, templates
from kvfix.eval.mcq.rings import Ring, find_rings, redness

MIN_SCORE = 0.55  # mean correlation of the labels as read
MIN_LABEL = 0.35  # correlation of each label
MIN_MARGIN = 0.08  # of summed correlation over any other reading's: the closest swaps two labels
MAX_RINGS = 7  # of one pen, the best; a photo may hold some of its own
SAME_RADIUS = 1.25  # ratio, or a pixel more: one program draws circles of one size
SAME_LINE = 0.15  # of purity: and with one pen
HEIGHTS = (1.0, 4.2)  # of a capital, in radii of the ring
REACH = 1.3  # largest gap between ring and label, in radii
BESIDE, PUSHED = 0.9, 0.6  # least share of a label's ink off its ring; if the border pushes it
PUSHED_COST = 0.1  # of correlation: a label by the border may belong to a ring farther inside
_RADIUS = 6.0  # pixels that rings are scaled to before their labels are read
_STEP = 1.15  # between heights


def find_markers(
    image: Image.Image, *, labels: Sequence[str]
) -> dict[str, tuple[float, float]] | None:
    """(x, y) of each labelled circle, pixel centres at integers; None unless all are beyond doubt.

    `labels` are all that the image should show, each once: ("REF",), ("A", "B", "C", "D").
    """
    wanted = tuple(labels)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"expected labels, each once, found {wanted}")
    red = redness(image)
    groups = [group for group in _one_pen(find_rings(red)) if len(group) >= len(wanted)]
    if not groups:
        return None
    rings = sorted(set().union(*groups))
    # A pen draws one radius; each ring's own is off by what JPEG and the photo did to its edge.
    radii = [np.median([r.radius for r in rings if _same_size(r, ring)]) for ring in rings]
    even = [ring._replace(radius=float(r)) for ring, r in zip(rings, radii, strict=True)]
    scores_NKL = label_scores(red.purity + red.chroma, even, wanted)
    fits_NKL = np.where(scores_NKL >= MIN_LABEL, scores_NKL, -np.inf)
    readings: dict[tuple[int, ...], float] = {}
    for group in groups:
        for order in itertools.permutations(map(rings.index, group), len(wanted)):
            if order not in readings:
                chosen_KL = fits_NKL[list(order), :, range(len(wanted))].T
                readings[order] = float(chosen_KL.mean(1).max())
    best, *others = sorted(readings, key=lambda order: -readings[order])
    rival = max((readings[order] for order in others), default=0.0)
    margin = len(wanted) * (readings[best] - rival)
    if readings[best] < MIN_SCORE or margin < MIN_MARGIN:
        return None
    return {label: (rings[n].x, rings[n].y) for label, n in zip(wanted, best, strict=True)}


def _one_pen(rings: Sequence[Ring]) -> set[tuple[Ring, ...]]:
    """Every largest group of rings of about one radius and one purity of line."""
    groups = set()
    for small, pure in itertools.product(rings, repeat=2):
        group = [
            ring
            for ring in rings
            if ring.radius >= small.radius
            and _same_size(small, ring)
            and pure.line - SAME_LINE <= ring.line <= pure.line
        ]
        groups.add(tuple(group[:MAX_RINGS]))
    return groups


def _same_size(a: Ring, b: Ring) -> bool:
    small, large = sorted((a.radius, b.radius))
    return large <= max(small * SAME_RADIUS, small + 1)


def label_scores(red_HW: np.ndarray, rings: Sequence[Ring], labels: tuple[str, ...]) -> np.ndarray:
    """(N, K, L) float64: how well each label fits beside each ring, in each look.

    It is the highest normalised correlation in [-1, 1] over all places within `REACH` of the ring,
    the ring itself left out of the count; -1 where there is no place.
    """
    n_heights = int(np.log(HEIGHTS[1] / HEIGHTS[0]) / np.log(_STEP)) + 1
    scores = []
    for height in sorted({round(_RADIUS * HEIGHTS[0] * _STEP**i) for i in range(n_heights)}):
        ink_FLhw, support_FLhw = templates(labels, height)
        reach = int(np.ceil(_RADIUS * (1 + REACH))) + max(ink_FLhw.shape[2:])
        least_NFLhw = torch.stack(
            [_least_ink(ring, red_HW.shape, reach, support_FLhw) for ring in rings]
        )
        red_Nhw = _windows(red_HW, rings, reach)
        free_Nhw = _windows(np.ones_like(red_HW), rings, reach)
        free_Nhw[:, _disc(reach)] = 0
        scores.append(_match(red_Nhw, free_Nhw, ink_FLhw, support_FLhw, least_NFLhw))
    return torch.cat(scores, 1).numpy().astype(np.float64)


def _windows(f_HW: np.ndarray, rings: Sequence[Ring], reach: int) -> torch.Tensor:
    """(N, 2 reach + 1, 2 reach + 1) samples around rings scaled to `_RADIUS`; 0 off the image."""
    samples = []
    for ring in rings:
        pixels = ring.radius / _RADIUS  # of the image a step
        smooth_HW = ndimage.gaussian_filter(f_HW, 0.5 * (pixels - 1)) if pixels > 1.2 else f_HW
        step_h = np.arange(-reach, reach + 1) * pixels
        at = np.meshgrid(ring.y + step_h, ring.x + step_h, indexing="ij")
        samples.append(ndimage.map_coordinates(smooth_HW, at, order=1, cval=0.0))
    return torch.from_numpy(np.stack(samples).astype(np.float32))


def _disc(reach: int) -> torch.Tensor:
    step_h = torch.arange(-reach, reach + 1.0)
    return torch.hypot(step_h[:, None], step_h[None]) <= _RADIUS + 1


def _match(
    red_Nhw: torch.Tensor,
    free_Nhw: torch.Tensor,
    ink_FLhw: torch.Tensor,
    support_FLhw: torch.Tensor,
    least_NFLhw: torch.Tensor,
) -> torch.Tensor:
    """(N, F, L) best correlation of each template, pixels weighted by `free`."""
    ink, support = ink_FLhw.flatten(0, 1)[:, None], support_FLhw.flatten(0, 1)[:, None]
    box, which = support.unique(dim=0, return_inverse=True)  # boxes repeat, templates do not
    n, b = len(ink), len(box)
    free, red = free_Nhw[:, None], (free_Nhw * red_Nhw)[:, None]
    of_free = functional.conv2d(free, torch.cat((ink, ink * ink, box)))
    of_red = functional.conv2d(red, torch.cat((ink, box)))
    square_box = functional.conv2d(red * red_Nhw[:, None], box)
    ink_sum, ink_square, free_box = of_free.split((n, n, b), dim=1)
    red_ink, red_box = of_red.split((n, b), dim=1)
    count_box = free_box.clamp(min=1)
    mean_box = red_box / count_box
    count, mean_red = count_box[:, which], mean_box[:, which]
    var_red = (square_box / count_box - mean_box**2)[:, which]
    mean_ink = ink_sum / count
    var_ink = ink_square / count - mean_ink**2
    covariance = red_ink / count - mean_ink * mean_red
    score = covariance / (var_ink.clamp(min=1e-4) * var_red.clamp(min=1e-4)).sqrt()
    # Enough of the ink must lie off the ring, and be redder by more than noise.
    all_ink = (ink * ink).sum((1, 2, 3))[:, None, None].clamp(min=1e-6)
    seen = ink_square >= least_NFLhw.flatten(1, 2) * all_ink
    score = score - PUSHED_COST * (ink_square < BESIDE * all_ink)
    score = torch.where(seen & (covariance >= 0.15 * var_ink), score, -1.0)
    return score.amax((2, 3)).unflatten(1, ink_FLhw.shape[:2])


def _least_ink(
    ring: Ring, image_hw: tuple[int, ...], reach: int, support_FLhw: torch.Tensor
) -> torch.Tensor:
    """(F, L, places) share of a label's ink that must lie off the ring; over 1 where it is too far.

    A label stands beside its ring: letters have round holes themselves, and each would be the ring
    of its own letter. Only the image's border pushes a label onto its ring.
    """
    lengths = support_FLhw.amax(3).sum(2) - 2 * MARGIN, support_FLhw.amax(2).sum(2) - 2 * MARGIN
    scale = _RADIUS / ring.radius
    gaps, pushed = [], []
    for axis, centre in enumerate((ring.y, ring.x)):
        shape = [1, 1, 1, 1]
        shape[2 + axis] = -1
        n_places = 2 * reach + 1 - (support_FLhw.shape[2 + axis] - 1)
        first = (torch.arange(float(n_places)) + MARGIN - reach).view(
            shape
        )  # from the ring's centre
        last = first + lengths[axis][:, :, None, None] - 1
        gaps.append(torch.maximum(first, -last).clamp(min=0))
        border = (-centre * scale, (image_hw[axis] - 1 - centre) * scale)
        pushed.append((first <= border[0] + _RADIUS) | (last >= border[1] - _RADIUS))
    least = torch.where(pushed[0] | pushed[1], PUSHED, BESIDE)
    return torch.where(torch.hypot(gaps[0], gaps[1]) <= _RADIUS * (1 + REACH), least, 2.0)
