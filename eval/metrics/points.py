"""Percentage of correct keypoints (PCK): K keypoints in pixels of the original target image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PairHits(NamedTuple):
    """Correct keypoints and all keypoints of one pair."""

    correct: int
    points: int


def box_size(box: Sequence[float]) -> float:
    """Longer side of a box x0, y0, x1, y1: what a PCK "bbox" radius is a share of."""
    return float(max(box[2] - box[0], box[3] - box[1]))


def image_size(width_height: Sequence[float]) -> float:
    """Longer side of an image: what a PCK "img" radius is a share of."""
    return float(max(width_height[0], width_height[1]))


def correct_points(predicted: np.ndarray, truth_K2: np.ndarray, radius: float) -> np.ndarray:
    """How many of K points (..., K, 2) lie within a radius of the truth, which counts itself."""
    return (np.linalg.norm(predicted - truth_K2, axis=-1) <= radius).sum(-1)


def pck_hits(predicted_K2: np.ndarray, truth_K2: np.ndarray, size: float, alpha: float) -> PairHits:
    """Keypoints (x, y) within alpha * size pixels of the truth, the bound included (DIFT, HPF).

    `size` is the longer side of the target box (PCK bbox) or of the target image (PCK img).
    """
    mine, true = np.asarray(predicted_K2, float), np.asarray(truth_K2, float)
    if mine.shape != true.shape or true.ndim != 2 or true.shape[1] != 2:
        raise ValueError(
            f"expected (keypoints, 2) predictions and truths of one shape, found {mine.shape} and "
            f"{true.shape}"
        )
    return PairHits(int(correct_points(mine, true, alpha * size)), len(true))


def pck_per_image(hits: Sequence[PairHits]) -> float:
    """Mean over pairs of each pair's share of correct keypoints."""
    return float(np.mean([h.correct / h.points for h in hits]))


def pck_per_point(hits: Sequence[PairHits]) -> float:
    """Share of correct keypoints pooled over pairs."""
    return sum(h.correct for h in hits) / sum(h.points for h in hits)
