"""Metrics of binary masks: foreground IoU, Pascal-5i, referring segmentation, co-segmentation.

All start from the pixel counts of one prediction against one truth (`overlap`), so that a run need
not keep masks. Masks are (height, width). A function of nothing at all raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvfix.data.groups import grouped
from kvfix.data.readers.episodes import FOLDS, PER_FOLD
from kvfix.data.units import VOID

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)  # of RefCOCO; the bound itself counts
# What an expression scores whose truth and prediction are both empty.
EMPTY_IS = {"lisa": 1.0, "lavt": 0.0}


class Overlap(NamedTuple):
    """Pixel counts of one prediction against one truth; sum them over units for pooled scores."""

    inter: int
    union: int
    inter_background: int
    union_background: int

    @property
    def iou(self) -> float:
        """Foreground IoU; 1 where neither prediction nor truth has foreground."""
        return self.iou_or(1.0)

    def iou_or(self, empty: float) -> float:
        """Foreground IoU; `empty` where neither prediction nor truth has foreground."""
        return self.inter / self.union if self.union else empty

    @property
    def precision(self) -> float:
        """MSRC's P: the share of right pixels, over foreground and background; void left out."""
        n_valid = self.union_background + self.inter
        return (self.inter + self.inter_background) / n_valid if n_valid else 1.0


class FoldScore(NamedTuple):
    """One fold of Pascal-5i; its `absent` classes have no episode, and each counts 0 in `miou`."""

    miou: float
    fb_iou: float
    absent: tuple[int, ...]


class Pascal5i(NamedTuple):
    """Means over the folds that have episodes, and those folds by number."""

    miou: float
    fb_iou: float
    folds: dict[int, FoldScore]


class ReferringScore(NamedTuple):
    """Referring segmentation over expressions.

    cIoU (also oIoU, "overall IoU") is the sum of intersections over that of unions, mIoU (also
    gIoU) the mean of each expression's; `precision` is the share whose IoU reaches each bound.
    """

    ciou: float
    miou: float
    precision: dict[float, float]


class GroupScore(NamedTuple):
    """Jaccard index J and precision P of one co-segmentation group."""

    jaccard: float
    precision: float


class Cosegmentation(NamedTuple):
    """Means over groups, and the groups."""

    jaccard: float
    precision: float
    groups: dict[str, GroupScore]


def overlap(predicted: np.ndarray, truth: np.ndarray, *, void: int | None = VOID) -> Overlap:
    """Pixel counts of two (height, width) masks; anything but 0 is foreground.

    Pixels that are `void` in the truth count in neither mask, the rule of Pascal-5i
    (juhongm999/hsnet, ``common/evaluation.py``). None where there is no such value, as in RefCOCO:
    a truth of 0 and 255 would be all void otherwise.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"prediction {predicted.shape} and truth {truth.shape} must have one shape"
        )
    valid = np.ones(truth.shape, bool) if void is None else truth != void
    mine, true = (predicted != 0) & valid, (truth != 0) & valid
    inter, union = int((mine & true).sum()), int((mine | true).sum())
    n_valid = int(valid.sum())
    return Overlap(inter, union, n_valid - union, n_valid - inter)


def mean_iou(overlaps: Iterable[Overlap], *, empty: float = 1.0) -> float:
    """Mean of each unit's foreground IoU; `empty` is that of nothing against nothing."""
    return float(np.mean([o.iou_or(empty) for o in _some(overlaps)]))


def pooled_iou(overlaps: Iterable[Overlap]) -> float:
    """Foreground intersections over unions, both summed over units; NaN if no union has a pixel."""
    counts = np.asarray(_some(overlaps), dtype=np.int64)
    return float(pooled_ratio(counts[:, 0], counts[:, 1]))


def pooled_ratio(part: np.ndarray, whole: np.ndarray, axis: int = 0) -> np.ndarray:
    """Sum of parts over sum of wholes along ``axis`` (cIoU, class IoU); NaN where wholes are 0."""
    top, bottom = np.sum(part, axis, dtype=np.float64), np.sum(whole, axis, dtype=np.float64)
    return np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)


def class_miou(overlaps: Sequence[Overlap], classes: Sequence[int], of: Sequence[int]) -> float:
    """Foreground IoU pooled within each class, then the mean over the classes ``of`` a fold.

    A class without an episode counts 0, as in HSNet's ``AverageMeter``.
    """
    counts, labels = np.asarray(overlaps, dtype=np.int64), np.asarray(classes)
    ious = [pooled_ratio(*counts[labels == c, :2].T) for c in of]
    return float(np.mean(np.nan_to_num(ious)))


def fb_iou(overlaps: Sequence[Overlap]) -> float:
    """FB-IoU: mean of the foreground's and the background's IoU, both pooled over all episodes."""
    counts = np.asarray(overlaps, dtype=np.int64)
    return float(np.mean(np.nan_to_num(pooled_ratio(counts[:, ::2], counts[:, 1::2]))))


def fold_of(category: int) -> int:
    """The fold 0..3 of a VOC class id 1..20."""
    if not 1 <= category <= FOLDS * PER_FOLD:
        raise ValueError(f"expected a VOC class id 1 to 20, found {category}")
    return (category - 1) // PER_FOLD


def pascal5i(overlaps: Sequence[Overlap], classes: Sequence[int]) -> Pascal5i:
    """Pascal-5i (juhongm999/hsnet) of episodes and their VOC class ids 1 to 20."""
    members = grouped(range(len(classes)), lambda i: fold_of(classes[i]))
    if len(classes) != len(overlaps) or not members:
        raise ValueError(
            f"expected one class an episode and at least one episode, found {len(overlaps)} "
            f"episodes and {len(classes)} classes"
        )
    folds = {}
    for fold, at in sorted(members.items()):
        of = range(PER_FOLD * fold + 1, PER_FOLD * (fold + 1) + 1)
        mine, labels = [overlaps[i] for i in at], [classes[i] for i in at]
        absent = tuple(c for c in of if c not in labels)
        folds[fold] = FoldScore(class_miou(mine, labels, of), fb_iou(mine), absent)
    miou, fb = (float(np.mean([f[k] for f in folds.values()])) for k in (0, 1))
    return Pascal5i(miou, fb, folds)


def referring(overlaps: Sequence[Overlap], *, empty: float = EMPTY_IS["lisa"]) -> ReferringScore:
    """CIoU, mIoU and P@0.5..0.9 of referring segmentation.

    The rules of yz93/LAVT-RIS (``test.py``) and dvlab-research/LISA (``validate``), which differ in
    what nothing against nothing scores (`empty`, see `EMPTY_IS`). LISA adds 1e-5 pixels to each
    union; that is left out here.
    """
    iou_N = np.array([o.iou_or(empty) for o in _some(overlaps)])
    return ReferringScore(
        pooled_iou(overlaps),
        float(iou_N.mean()),
        {bound: float((iou_N >= bound).mean()) for bound in PRECISION_AT},
    )


def cosegmentation(groups: Mapping[str, Sequence[Overlap]]) -> Cosegmentation:
    """MSRC co-segmentation: J and P, means over a group's images, then over groups."""
    if not groups:
        raise ValueError("expected at least one group, found none")
    scores = {name: group_score(overlaps) for name, overlaps in groups.items()}
    j, p = (float(np.mean([s[k] for s in scores.values()])) for k in (0, 1))
    return Cosegmentation(j, p, scores)


def group_score(overlaps: Sequence[Overlap]) -> GroupScore:
    """J and P of one group, means over its images."""
    return GroupScore(mean_iou(overlaps), float(np.mean([o.precision for o in overlaps])))


def _some(overlaps: Iterable[Overlap]) -> list[Overlap]:
    found = list(overlaps)
    if not found:
        raise ValueError("expected at least one mask, found none")
    return found
