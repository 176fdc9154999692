"""`kvfix score imagenet_s`: mIoU over all classes and background of predicted class maps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.readers.imagenet_s import imagenet_s_truths
from kvfix.eval.metrics import IGNORE, ClassCounts, ClassIoU, class_counts, class_ids, class_iou
from kvfix.score.predictions import Masks, check_size, read_pixels
from kvfix.score.record import (
    Options,
    Outcome,
    Scored,
    Watch,
    each_truth,
    finish,
    ratio_figure,
    unit_row,
)


class _Image(NamedTuple):
    id: str
    own: int  # class id of the image itself
    shown: dict[int, tuple[int, int]]  # class id -> intersection, union; what occurs only


def score_imagenet_s(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Score one class map an image; a missing one counts as background everywhere.

    Raises:
        ValueError: maps of another form or size, an `out` that holds something else.
        FileNotFoundError: no folder of maps, or parts of the ImageNet-S tree are missing.
    """
    start = time.monotonic()
    truths = imagenet_s_truths(options.truth)
    units, classes = truths.units, truths.classes
    predicted = Masks(options.predictions, units.ids)
    left_out: list[dict[str, str]] = []
    images: list[_Image] = []
    total: ClassCounts | None = None
    for name, truth_HW in each_truth(truths, left_out, watch):
        ids_HW = _read(predicted.path(name), truth_HW, len(classes))
        counts = class_counts(ids_HW, truth_HW, len(classes))
        total = counts if total is None else ClassCounts(*map(np.add, total, counts))
        images.append(_Image(name, classes.index(name.split("/")[0]) + 1, _shown(counts)))
    assert total is not None
    score = class_iou([total])
    entries = [(i.id, c, *counts) for i in images for c, counts in i.shown.items()]
    clusters, labels, inter, union = zip(*entries, strict=True)
    figure = ratio_figure(
        *("mIoU", score.miou, inter, union, clusters),
        seed=options.seed,
        strata=labels,
        n_strata=len(classes) + 1,
        n=len(images),
    )
    names = ("background", *classes)
    of = units.task, units.dataset
    rows = []
    for image in images:
        own_inter, own_union = image.shown.get(image.own, (0, 0))
        rows.append(
            unit_row(
                *(of, image.id, image.id, "IoU", own_inter / own_union if own_union else 1.0),
                category=names[image.own],
                # Not "inter" and "union": those of the own class alone do not make the mIoU.
                classes={names[c]: list(counts) for c, counts in image.shown.items()},
            )
        )
    scored = Scored(
        *(units, predicted.card, {}, [figure], rows),
        *(predicted.missing, predicted.unknown, left_out, _notes(score, names)),
        details={
            "n_classes": len(classes),
            "absent": [names[c] for c in score.absent],
            "classes": dict(zip(names, score.iou_C.tolist(), strict=True)),
        },
    )
    return finish(scored, options, command=command, start=start)


def _read(path: Path | None, truth_HW: np.ndarray, n_classes: int) -> np.ndarray:
    """The predicted class ids; background where there is no prediction."""
    if path is None:
        return np.zeros_like(truth_HW)
    ids_HW = class_ids(read_pixels(path, ("RGB", "RGBA")).values)
    check_size(path, ids_HW, truth_HW)
    strange = ids_HW[(ids_HW > n_classes) & (ids_HW != IGNORE)]
    if strange.size:
        raise ValueError(
            f"{path}: expected class ids R + 256 * G of 0 to {n_classes}, found {strange[0]}"
        )
    return ids_HW


def _shown(counts: ClassCounts) -> dict[int, tuple[int, int]]:
    union_C = counts.union_C
    return {int(c): (int(counts.inter_C[c]), int(union_C[c])) for c in np.flatnonzero(union_C)}


def _notes(score: ClassIoU, names: tuple[str, ...]) -> list[str]:
    if not score.absent:
        return []
    some = ", ".join(names[c] for c in score.absent[:3])
    return [
        f"{len(score.absent)} of {len(names)} classes are absent from the truth and count 0 "
        f"({some}, ...): this is the score of a subset, not an official one"
    ]
