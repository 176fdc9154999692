"""ImageNet-S: mIoU over all classes and background of predicted class maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvfix.data.readers.imagenet_s import LabelMaps
from kvfix.data.units import Truths
from kvfix.eval.metrics.classes import IGNORE, class_counts, class_ids
from kvfix.eval.pooled import class_iou
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.predictions import MaskFolder, read_pixels
from kvfix.score.record import Scoring

_CLASS = "IoU of a class"  # metric of the rows that are only summed up
_Job = Scoring[np.ndarray, MaskFolder]


def predictions(path: Path, truths: Truths[np.ndarray]) -> MaskFolder:
    """A class map for each image."""
    return MaskFolder(path, truths.units.ids)


def rows(job: _Job, name: str, truth_HW: np.ndarray) -> Iterator[ProbeRow]:
    """An image's own class, which is written, and one for each class that occurs in it."""
    names = _names(job)

    def read(path: Path) -> np.ndarray:
        ids_HW = class_ids(read_pixels(path, ("RGB", "RGBA")).values)
        strange = ids_HW[(ids_HW >= len(names)) & (ids_HW != IGNORE)]
        if strange.size:
            raise ValueError(
                f"{path}: expected class ids R + 256 * G of 0 to {len(names) - 1}, found "
                f"{strange[0]}"
            )
        return ids_HW

    counts = class_counts(job.predictions.read(name, read, truth_HW), truth_HW, len(names) - 1)
    union_C, own = counts.union_C, name.split("/")[0]
    shown = {names[c]: [int(counts.inter_C[c]), int(union_C[c])] for c in np.flatnonzero(union_C)}
    inter, union = shown.get(own, (0, 0))
    # Not "inter" and "union": those of the own class alone do not make the mIoU.
    iou = inter / union if union else 1.0
    yield job.row(name, name, "IoU", iou, category=own, classes=shown)
    for category, (inter, union) in shown.items():
        yield job.row(
            *(f"{name} {category}", name, _CLASS, inter / union),
            category=category,
            inter=inter,
            union=union,
            truth=int(counts.truth_C[names.index(category)]),
        )


def results(job: _Job) -> Iterator[Result]:
    """One figure: each class pooled over all images, then the mean over all classes."""
    found = class_iou(job.columns(metric=_CLASS), len(_names(job)))
    yield job.result("mIoU", found) | {"n": len({r.cluster for r in job.rows})}


def details(job: _Job, results: list[Result]) -> dict[str, Any]:
    """IoU of each class, and the classes that the truth does not have."""
    sums = {name: [0, 0, 0] for name in _names(job)}
    for row in job.columns(metric=_CLASS).rows:
        for i, key in enumerate(("inter", "union", "truth")):
            sums[row.category][i] += row.number(key)
    return {
        "n_classes": len(sums) - 1,
        "absent": [name for name, (_, _, truth) in sums.items() if not truth],
        "classes": {name: inter / max(union, 1) for name, (inter, union, _) in sums.items()},
    }


def notes(job: _Job) -> Iterator[str]:
    """Whether this is the score of a subset."""
    if absent := details(job, [])["absent"]:
        yield (
            f"{len(absent)} of {len(_names(job))} classes are absent from the truth and count 0 "
            f"({', '.join(absent[:3])}, ...): this is the score of a subset, not an official one"
        )


def _names(job: _Job) -> tuple[str, ...]:
    assert isinstance(job.truths, LabelMaps)
    return "background", *job.truths.classes
