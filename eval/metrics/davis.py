"""J, F, recall and decay of DAVIS-2017, semi-supervised, float64.

Rules of davisvideochallenge/davis2017-evaluation. Shapes: T frames, O objects; masks are (height,
width). Scores are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kvfix.data.units import VOID
from kvfix.eval.metrics.boundary import boundary_f, count_pixels


def region_j(predicted_SHW: torch.Tensor, truth_HW: torch.Tensor) -> torch.Tensor:
    """Region similarity J of S bool masks of one object, (S,) float64 (``db_eval_iou``); 1 of
    nothing.
    """
    inter = count_pixels(predicted_SHW & truth_HW).double()
    union = count_pixels(predicted_SHW | truth_HW).double()
    return torch.where(union > 0, inter / union.clamp(min=1), 1.0)


def davis_j(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J of one object in one frame, bool masks."""
    return float(region_j(*_masks(predicted, truth)))


def davis_f(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Boundary accuracy F of one object in one frame, bool masks (``db_eval_boundary``)."""
    return float(boundary_f(*_masks(predicted, truth)))


def _masks(predicted: np.ndarray, truth: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mine, true = (torch.as_tensor(np.asarray(mask, dtype=bool)) for mask in (predicted, truth))
    return mine[None], true


def recall(per_frame: np.ndarray) -> np.ndarray:
    """Share of frames (first axis) with a score above 0.5 (``db_statistics``)."""
    return (np.asarray(per_frame) > 0.5).mean(axis=0)


def decay(per_frame: np.ndarray) -> np.ndarray:
    """Mean of the first quarter of the frames (first axis) minus that of the last.

    The quarters share their end frames, as in the reference (``db_statistics``). Its indices are
    8-bit and wrap past 256 frames; these do not.
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

    Both are a (height, width) label map for each frame, of which the first and the last do not
    count. In the truth 255 is background, and the objects are the labels up to the first frame's
    largest; a prediction beyond them, or fewer than 3 frames, is a ValueError.
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
