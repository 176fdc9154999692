"""Metrics of the benchmarks as pure functions, float64, equal to their reference implementations.

Shapes: T frames, S sites, O objects, K keypoints, N units; masks are (height, width). All scores
are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kvfix.eval.boundary import boundary_f

VOID = 255


class Overlap(NamedTuple):
    """Pixel counts of one prediction against one truth; sum them over units for pooled scores."""

    inter: int
    union: int
    inter_background: int
    union_background: int

    @property
    def iou(self) -> float:
        """Foreground IoU; 1 where neither prediction nor truth has foreground."""
        return self.inter / self.union if self.union else 1.0


def overlap(predicted: np.ndarray, truth: np.ndarray) -> Overlap:
    """Binary overlap that ignores void (255) pixels of the truth in prediction and truth alike.

    The rule of Pascal-5i (juhongm999/hsnet, ``common/evaluation.py``).

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"prediction {predicted.shape} and truth {truth.shape} must have one shape"
        )
    valid = truth != VOID
    mine, true = (predicted != 0) & valid, (truth != 0) & valid
    inter, union = int((mine & true).sum()), int((mine | true).sum())
    n_valid = int(valid.sum())
    return Overlap(inter, union, n_valid - union, n_valid - inter)


def binary_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Foreground IoU of one mask, void (255 in the truth) left out; empty and empty is 1."""
    return overlap(predicted, truth).iou


def pooled_ratio(part: np.ndarray, whole: np.ndarray, axis: int = 0) -> np.ndarray:
    """Sum of parts over sum of wholes along ``axis`` (cIoU, class IoU); NaN where wholes are 0."""
    top, bottom = np.sum(part, axis, dtype=np.float64), np.sum(whole, axis, dtype=np.float64)
    return np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)


def class_miou(overlaps: Sequence[Overlap], classes: Sequence[int], of: Sequence[int]) -> float:
    """Pascal-5i mIoU of one fold: foreground IoU pooled per class, mean over the classes ``of`` the
    fold.

    A class without an episode counts 0, as in HSNet's ``AverageMeter``.
    """
    by_class = dict.fromkeys(of, (0, 0))
    for o, c in zip(overlaps, classes, strict=True):
        if c in by_class:
            inter, union = by_class[c]
            by_class[c] = inter + o.inter, union + o.union
    return float(np.mean([i / max(u, 1) for i, u in by_class.values()]))


def fb_iou(overlaps: Sequence[Overlap]) -> float:
    """FB-IoU: mean of the foreground's and the background's IoU, both pooled over all episodes."""
    sums = np.sum(np.asarray(overlaps, dtype=np.float64), axis=0)
    return float((sums[0] / max(sums[1], 1) + sums[2] / max(sums[3], 1)) / 2)


def jaccard(predicted: np.ndarray, truth: np.ndarray) -> float:
    """MSRC Jaccard index J: foreground IoU of one image."""
    return binary_iou(predicted, truth)


def pixel_precision(predicted: np.ndarray, truth: np.ndarray) -> float:
    """MSRC precision P: share of right pixels, over foreground AND background; void left out."""
    o = overlap(predicted, truth)
    n_valid = o.union_background + o.inter
    return (o.inter + o.inter_background) / n_valid if n_valid else 1.0


def davis_j(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Region similarity J of an object in a frame, bool masks; union 0 -> 1 (``db_eval_iou``)."""
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def davis_f(predicted: np.ndarray, truth: np.ndarray, *, tolerance: float = 0.008) -> float:
    """Boundary accuracy F of one object in one frame, bool masks (``db_eval_boundary``)."""
    mine = torch.as_tensor(np.asarray(predicted, dtype=bool))[None]
    return float(
        boundary_f(mine, torch.as_tensor(np.asarray(truth, dtype=bool)), tolerance=tolerance)
    )


def recall(per_frame: np.ndarray) -> np.ndarray:
    """Share of frames (first axis) with a score above 0.5 (``db_statistics``)."""
    return (np.asarray(per_frame) > 0.5).mean(axis=0)


def decay(per_frame: np.ndarray) -> np.ndarray:
    """Mean of the first quarter of the frames (first axis) minus that of the last
    (``db_statistics``).

    The quarters share their end frames, as in the reference. Its indices are 8-bit and wrap past
    256 frames; these do not.
    """
    x = np.asarray(per_frame, dtype=np.float64)
    edges = np.round(np.linspace(1, len(x), 5) + 1e-10).astype(int) - 1
    return x[edges[0] : edges[1] + 1].mean(axis=0) - x[edges[3] : edges[4] + 1].mean(axis=0)


class ObjectScore(NamedTuple):
    """J and F statistics of one object over the counted frames of a clip."""

    j_mean: float
    j_recall: float
    j_decay: float
    f_mean: float
    f_recall: float
    f_decay: float

    @property
    def jf(self) -> float:
        """J&F, the mean of both means."""
        return (self.j_mean + self.f_mean) / 2


def davis_objects(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]
) -> list[ObjectScore]:
    """Scores of each object of a clip, semi-supervised DAVIS-2017.

    Args:
        predicted: one (height, width) label map a frame; the first and the last are not looked at.
        truth: same; 255 is background. The objects are the labels up to the first frame's largest.

    Raises:
        ValueError: frame counts or sizes differ, fewer than 3 frames, no object in the first frame,
            or a prediction with an object id that the first frame does not have.
    """
    if len(predicted) != len(truth) or len(truth) < 3:
        raise ValueError(
            f"a clip needs one prediction a frame and at least 3 frames, got {len(predicted)} "
            f"predictions for {len(truth)} frames"
        )
    first = np.where(truth[0] == VOID, 0, truth[0])
    n_objects = int(first.max())
    if n_objects == 0:
        raise ValueError(
            "the first frame's truth must hold at least one object, got background only"
        )
    scores = np.empty((len(truth) - 2, 2, n_objects))
    for t in range(1, len(truth) - 1):
        if predicted[t].shape != truth[t].shape:
            raise ValueError(
                f"frame {t}: prediction {predicted[t].shape} and truth {truth[t].shape} must have "
                "one shape"
            )
        if int(predicted[t].max()) > n_objects:
            raise ValueError(
                f"frame {t}: predicted object id {int(predicted[t].max())}, but the first frame "
                f"has {n_objects} objects"
            )
        for o in range(1, n_objects + 1):
            mine, true = predicted[t] == o, truth[t] == o
            scores[t - 1, :, o - 1] = davis_j(mine, true), davis_f(mine, true)
    rows = np.stack((scores.mean(0), recall(scores), decay(scores)), axis=1)  # (J|F, stat, O)
    return [ObjectScore(*map(float, rows[:, :, o].flatten())) for o in range(n_objects)]


class PairHits(NamedTuple):
    """Correct keypoints and all keypoints of one pair."""

    correct: int
    points: int


def pck_hits(predicted_K2: np.ndarray, truth_K2: np.ndarray, size: float, alpha: float) -> PairHits:
    """Keypoints within alpha * size pixels of the truth, the bound included (DIFT, HPF).

    Args:
        predicted_K2: (x, y) in target pixels.
        truth_K2: same.
        size: the longer side in pixels of the target box (PCK bbox) or of the target image (PCK
            img).
        alpha: share of it, 0.1 for the headline figure.
    """
    distance = np.linalg.norm(np.asarray(predicted_K2, float) - np.asarray(truth_K2, float), axis=1)
    return PairHits(int((distance <= alpha * size).sum()), len(distance))


def pck_per_image(hits: Sequence[PairHits]) -> float:
    """Mean over pairs of each pair's share of correct keypoints."""
    return float(np.mean([h.correct / h.points for h in hits]))


def pck_per_point(hits: Sequence[PairHits]) -> float:
    """Share of correct keypoints pooled over pairs."""
    return sum(h.correct for h in hits) / sum(h.points for h in hits)
