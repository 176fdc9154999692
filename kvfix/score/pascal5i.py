"""`kvfix score pascal5i`: mIoU and FB-IoU of predicted masks of HSNet's episodes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.readers.episodes import CLASSES, PER_FOLD
from kvfix.data.readers.pascal import QueryTruth, pascal_truths
from kvfix.eval.metrics import Overlap, Pascal5i, fold_of, overlap, pascal5i
from kvfix.score.predictions import Masks, check_size, read_binary, read_pixels
from kvfix.score.record import (
    Figure,
    Options,
    Outcome,
    Scored,
    Watch,
    each_truth,
    finish,
    ratio_figure,
    unit_row,
)


@dataclass(frozen=True)
class PascalOptions(Options):
    """Adds what a pixel of a predicted mask says."""

    class_maps: bool = False  # VOC class ids, of which the episode's is foreground; else binary


class _Episode(NamedTuple):
    id: str
    truth: QueryTruth
    overlap: Overlap

    @property
    def fold(self) -> int:
        return fold_of(self.truth.label)


def score_pascal5i(options: PascalOptions, *, command: str, watch: Watch) -> Outcome:
    """Score one mask an episode; a missing one counts as empty.

    Raises:
        ValueError: masks of another form or size, an `out` that holds something else.
        FileNotFoundError: no folder of masks, or parts of the VOC2012 tree are missing.
    """
    start = time.monotonic()
    truths = pascal_truths(options.truth)
    units = truths.units
    predicted = Masks(options.predictions, units.ids)
    left_out: list[dict[str, str]] = []
    found = []
    for name, truth in each_truth(truths, left_out, watch):
        mask_HW = _read(predicted.path(name), truth, class_maps=options.class_maps)
        found.append(_Episode(name, truth, overlap(mask_HW, truth.mask)))
    total = pascal5i([e.overlap for e in found], [e.truth.label for e in found])
    of = units.task, units.dataset
    rows = [
        unit_row(
            *(of, e.id, e.truth.query, "IoU", e.overlap.iou),
            category=CLASSES[e.truth.label - 1],
            fold=e.fold,
            **e.overlap._asdict(),
        )
        for e in found
    ]
    scored = Scored(
        *(units, predicted.card, {}, _figures(found, total, options.seed), rows),
        *(predicted.missing, predicted.unknown, left_out, _notes(total)),
        details={"classes": _class_iou(found)},
    )
    return finish(scored, options, command=command, start=start)


def _read(path: Path | None, truth: QueryTruth, *, class_maps: bool) -> np.ndarray:
    """The predicted mask, bool; empty where there is none."""
    if path is None:
        return np.zeros(truth.mask.shape, bool)
    if class_maps:
        mask_HW = read_pixels(path, ("P", "L")).values == truth.label
    else:
        try:
            mask_HW = read_binary(path)
        except ValueError as error:
            raise ValueError(f"{error}; maps of VOC class ids need --class-maps") from error
    check_size(path, mask_HW, truth.mask)
    return mask_HW


def _figures(found: list[_Episode], total: Pascal5i, seed: int) -> list[Figure]:
    """The means over folds, then each fold's."""
    figures = _pair(found, total.miou, total.fb_iou, None, seed)
    for fold, score in total.folds.items():
        members = [e for e in found if e.fold == fold]
        figures += _pair(members, score.miou, score.fb_iou, f"fold {fold}", seed)
    return figures


def _pair(
    found: list[_Episode], miou: float, fb_iou: float, part: str | None, seed: int
) -> list[Figure]:
    clusters = [e.truth.query for e in found]
    counts_N4 = np.array([e.overlap for e in found], float)
    n_folds = len({e.fold for e in found})
    return [
        ratio_figure(
            *("mIoU", miou, counts_N4[:, 0], counts_N4[:, 1], clusters),
            seed=seed,
            strata=[e.truth.label for e in found],
            n_strata=PER_FOLD * n_folds,
            part=part,
        ),
        ratio_figure(
            *("FB-IoU", fb_iou, counts_N4[:, ::2].T.ravel(), counts_N4[:, 1::2].T.ravel()),
            clusters * 2,
            seed=seed,
            strata=[(e.fold, side) for side in ("front", "back") for e in found],
            n_strata=2 * n_folds,
            n=len(found),
            part=part,
        ),
    ]


def _class_iou(found: list[_Episode]) -> dict[str, float]:
    sums: dict[int, tuple[int, int]] = {}
    for e in found:
        inter, union = sums.get(e.truth.label, (0, 0))
        sums[e.truth.label] = inter + e.overlap.inter, union + e.overlap.union
    return {CLASSES[c - 1]: inter / max(union, 1) for c, (inter, union) in sorted(sums.items())}


def _notes(total: Pascal5i) -> list[str]:
    notes = []
    for fold, score in total.folds.items():
        if score.absent:
            names = ", ".join(CLASSES[c - 1] for c in score.absent)
            notes.append(f"fold {fold}: no episode of {names}, which count 0 in its mIoU")
    if missing := sorted(set(range(4)) - set(total.folds)):
        numbers = ", ".join(map(str, missing))
        notes.append(f"no episode of fold {numbers}: the means are over the other folds")
    return notes
