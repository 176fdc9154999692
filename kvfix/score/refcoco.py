"""RefCOCO: cIoU, mIoU and P@0.5 to 0.9 of predicted COCO run-length masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.pictures.rle import decode_rle
from kvfix.data.readers.refcoco import refcoco_sentences
from kvfix.data.units import Sentence, Truths
from kvfix.eval.metrics.masks import EMPTY_IS, overlap
from kvfix.eval.pooled import POOLED, mean
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.predictions import Lines
from kvfix.score.record import Scoring
from kvfix.wording import shown


class _Rle(NamedTuple):
    size: tuple[int, int]  # height, width
    counts: str | list[int]
    where: str


_Job = Scoring[Sentence, Lines[_Rle]]


def truths(folder: Path, rules: Mapping[str, Any]) -> Truths[Any]:
    """The sentences and their masks."""
    units = refcoco_sentences(folder)
    return Truths(units, units.load)


def predictions(path: Path, truths: Truths[Sentence]) -> Lines[_Rle]:
    """A mask for each sentence."""
    return Lines(path, truths.units.ids, key="id", read=_rle)


def rows(job: _Job, name: str, truth: Sentence) -> Iterator[ProbeRow]:
    """Where neither truth nor prediction has a pixel, the rule `profile` says what that scores."""
    found = overlap(_decode(job.predictions.get(name), truth.mask.shape), truth.mask, void=None)
    iou = found.iou_or(EMPTY_IS[job.rules["profile"]])
    yield job.row(name, truth.cluster, "IoU", iou, inter=found.inter, union=found.union)


def results(job: _Job) -> Iterator[Result]:
    """Those of `kvfix eval`, and the mean."""
    columns = job.columns()
    figures = {name: figure(columns) for name, figure in POOLED[job.units.task].items()}
    yield job.result("cIoU", figures.pop("cIoU"))
    yield job.result("mIoU", mean(columns))
    yield from (job.result(name, found) for name, found in figures.items())


def _rle(line: dict[str, Any], where: str) -> _Rle:
    rle = line.get("rle")
    size, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, dict) else (None, None)
    numbers = size if isinstance(size, list) else []
    sized = len(numbers) == 2 and all(type(n) is int for n in numbers)
    if not sized or not isinstance(counts, str | list):
        raise ValueError(
            f'{where}: expected "rle": {{"size": [height, width], "counts": "..."}}, found '
            f"{shown(rle)}"
        )
    return _Rle((numbers[0], numbers[1]), counts, where)


def _decode(rle: _Rle | None, shape: tuple[int, ...]) -> np.ndarray:
    if rle is None:
        return np.zeros(shape, np.uint8)
    if rle.size != shape:
        raise ValueError(
            f"{rle.where}: expected a mask of {shape[0]} x {shape[1]} (height, width) like the "
            f"photo, found {rle.size[0]} x {rle.size[1]}"
        )
    try:
        return decode_rle(rle.size, rle.counts)
    except ValueError as error:
        raise ValueError(f"{rle.where}: {error}") from error
