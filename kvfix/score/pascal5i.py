"""Pascal-5i: mIoU and FB-IoU of predicted masks of HSNet's episodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvfix.data.readers.episodes import CLASSES, PER_FOLD
from kvfix.data.readers.pascal import QueryTruth
from kvfix.data.units import Truths
from kvfix.eval.metrics.masks import fold_of, overlap, pooled_ratio
from kvfix.eval.pooled import class_iou, foreground_background_iou
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.predictions import MaskFolder, read_binary, read_pixels
from kvfix.score.record import Scoring

_Job = Scoring[QueryTruth, MaskFolder]


def predictions(path: Path, truths: Truths[QueryTruth]) -> MaskFolder:
    """A mask for each episode."""
    return MaskFolder(path, truths.units.ids)


def rows(job: _Job, name: str, truth: QueryTruth) -> Iterator[ProbeRow]:
    """An episode's pixel counts; void pixels count nowhere."""
    read = partial(_class_map, truth.label) if job.rules["class_maps"] else _binary
    found = overlap(job.predictions.read(name, read, truth.mask), truth.mask)
    yield job.row(
        *(name, truth.query, "IoU", found.iou),
        category=CLASSES[truth.label - 1],
        fold=fold_of(truth.label),
        **found._asdict(),
    )


def results(job: _Job) -> Iterator[Result]:
    """The means over folds, then each fold's."""
    folds = _folds(job)
    yield from _both(job, len(folds))
    for fold in folds:
        yield from _both(job, 1, f"fold {fold}", fold=fold)


def details(job: _Job, results: list[Result]) -> dict[str, Any]:
    """IoU of each class, pooled over its episodes."""
    classes = {}
    for name in CLASSES:
        if members := [r for r in job.rows if r.category == name]:
            inter, union = ([r.number(key) for r in members] for key in ("inter", "union"))
            classes[name] = float(np.nan_to_num(pooled_ratio(inter, union)))
    return {"classes": classes}


def notes(job: _Job) -> Iterator[str]:
    """Of which classes and folds there is no episode."""
    occur, folds = {r.category for r in job.rows}, _folds(job)
    for fold in folds:
        of_fold = CLASSES[PER_FOLD * fold : PER_FOLD * (fold + 1)]
        if absent := [name for name in of_fold if name not in occur]:
            yield f"fold {fold}: no episode of {', '.join(absent)}, which count 0 in its mIoU"
    if absent := [str(fold) for fold in range(4) if fold not in folds]:
        yield f"no episode of fold {', '.join(absent)}: the means are over the other folds"


def _folds(job: _Job) -> list[int]:
    return sorted({r.number("fold") for r in job.rows})


def _both(job: _Job, n_folds: int, part: str | None = None, **fields: int) -> Iterator[Result]:
    columns = job.columns(**fields)
    yield job.result("mIoU", class_iou(columns, PER_FOLD * n_folds), part=part)
    yield job.result("FB-IoU", foreground_background_iou(columns, by="fold"), part=part)


def _class_map(label: int, path: Path) -> np.ndarray:
    return read_pixels(path, ("P", "L")).values == label


def _binary(path: Path) -> np.ndarray:
    try:
        return read_binary(path)
    except ValueError as error:
        raise ValueError(f"{error}; maps of VOC class ids need --class-maps") from error
