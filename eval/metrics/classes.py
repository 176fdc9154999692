"""ImageNet-S: semantic segmentation over C classes and background, pooled over the whole dataset.

Rules of LUSSeg/ImageNet-S (``evaluation/evaluator.py``, ``data/data.py``). A label image stores the
class id as R + 256 * G; 0 is "other", the background; pixels of 1000 in the truth are left out of
prediction and truth alike. Class ids count the sorted WordNet ids of the subset from 1.

Shapes: C + 1 classes, background first; label maps are (height, width).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kvfix.data.readers.imagenet_s import IGNORE


class ClassCounts(NamedTuple):
    """Pixels by class, int64 (C + 1,): right ones, predicted ones, true ones. Add them up."""

    inter_C: np.ndarray
    predicted_C: np.ndarray
    truth_C: np.ndarray

    @property
    def union_C(self) -> np.ndarray:
        """Pixels of the class in prediction or truth."""
        return self.predicted_C + self.truth_C - self.inter_C


class ClassIoU(NamedTuple):
    """IoU of each of C + 1 classes, and the mean over all of them, background included.

    The `absent` classes are those that the truth does not have, and that therefore count 0. The
    official validation set has none: where there are any, `miou` is that of a subset.
    """

    miou: float
    iou_C: np.ndarray
    absent: tuple[int, ...]


def class_ids(rgb_HW3: np.ndarray) -> np.ndarray:
    """Class ids (height, width) int32 of an official label image, uint8 (height, width, 3 or 4)."""
    image = np.asarray(rgb_HW3)
    if image.ndim != 3 or image.shape[2] < 3:
        raise ValueError(
            f"expected an RGB label image (height, width, 3), its class id R + 256 * G, found "
            f"shape {image.shape}"
        )
    wide = image.astype(np.int32)  # 8-bit arithmetic would wrap
    return wide[:, :, 0] + 256 * wide[:, :, 1]


def class_counts(predicted: np.ndarray, truth: np.ndarray, n_classes: int) -> ClassCounts:
    """Count the pixels of one image by class, C = `n_classes` without the background.

    Both are (height, width) class ids; where the truth is `IGNORE`, nothing counts. A predicted id
    beyond C belongs to no class, as in the reference: its pixel counts in the truth's class only; a
    true one is a ValueError.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"prediction {predicted.shape} and truth {truth.shape} must have one shape"
        )
    valid = truth != IGNORE
    mine, true = predicted[valid].astype(np.int64), truth[valid].astype(np.int64)
    if true.size and not 0 <= true.min() <= true.max() <= n_classes:
        raise ValueError(
            f"expected class ids 0 to {n_classes} or {IGNORE} in the truth, found {true.min()} to "
            f"{true.max()}"
        )
    known = mine[(mine >= 0) & (mine <= n_classes)]
    return ClassCounts(
        *(np.bincount(ids, minlength=n_classes + 1) for ids in (true[mine == true], known, true))
    )


def class_iou(counts: Iterable[ClassCounts]) -> ClassIoU:
    """MIoU over C + 1 classes from the counts of all images, added up."""
    total: ClassCounts | None = None
    for image in counts:  # one at a time: 919 classes and 12,419 images would fill memory
        total = image if total is None else ClassCounts(*map(np.add, total, image))
    if total is None:
        raise ValueError("expected at least one image, found none")
    iou_C = total.inter_C / np.maximum(total.union_C, 1)
    absent = tuple(int(c) for c in np.flatnonzero(total.truth_C == 0))
    return ClassIoU(float(iou_C.mean()), iou_C, absent)
