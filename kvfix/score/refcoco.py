"""`kvfix score refcoco`: cIoU, mIoU and P@0.5 to 0.9 of predicted COCO run-length masks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.pictures.rle import decode_rle
from kvfix.data.readers.refcoco import refcoco_sentences
from kvfix.data.units import Sentence, Truths, UnitSet
from kvfix.eval.metrics import EMPTY_IS, Overlap, overlap, referring
from kvfix.score.predictions import Lines
from kvfix.score.record import (
    Options,
    Outcome,
    Scored,
    Watch,
    each_truth,
    finish,
    mean_figure,
    ratio_figure,
    unit_row,
)
from kvfix.wording import shown


@dataclass(frozen=True)
class RefcocoOptions(Options):
    """Adds whose rule holds where neither truth nor prediction has a pixel."""

    profile: str = "lisa"  # lisa: such an expression scores 1; lavt: 0


class _Rle(NamedTuple):
    size: tuple[int, int]  # height, width
    counts: str | list[int]
    where: str


class _Sentence(NamedTuple):
    id: str
    cluster: str
    overlap: Overlap


def score_refcoco(options: RefcocoOptions, *, command: str, watch: Watch) -> Outcome:
    """Score one mask a sentence; a missing one counts as empty.

    Raises:
        ValueError: masks that are of another form, size or split, an `out` that holds something
            else.
        FileNotFoundError: no predictions, or no parquet files.
    """
    start = time.monotonic()
    units = refcoco_sentences(options.truth)
    predicted = Lines(options.predictions, units.ids, key="id", read=_rle)
    left_out: list[dict[str, str]] = []
    found = []
    for name, sentence in each_truth(Truths(units, partial(_load, units)), left_out, watch):
        mask_HW = _decode(predicted.get(name), sentence.mask.shape)
        counts = overlap(mask_HW, sentence.mask, void=None)
        found.append(_Sentence(name, sentence.cluster, counts))
    empty = EMPTY_IS[options.profile]
    total = referring([s.overlap for s in found], empty=empty)
    clusters = [s.cluster for s in found]
    inter, union = [s.overlap.inter for s in found], [s.overlap.union for s in found]
    iou_N = np.array([s.overlap.iou_or(empty) for s in found])
    seed = options.seed
    figures = [
        ratio_figure("cIoU", total.ciou, inter, union, clusters, seed=seed),
        mean_figure("mIoU", total.miou, iou_N, clusters, seed=seed),
        *(
            mean_figure(f"P@{bound}", share, iou_N >= bound, clusters, seed=seed)
            for bound, share in total.precision.items()
        ),
    ]
    of = units.task, units.dataset
    rows = [
        unit_row(
            *(of, s.id, s.cluster, "IoU", s.overlap.iou_or(empty)),
            inter=s.overlap.inter,
            union=s.overlap.union,
        )
        for s in found
    ]
    scored = Scored(
        *(units, predicted.card, {"profile": options.profile}, figures, rows),
        *(predicted.missing, predicted.unknown, left_out),
    )
    return finish(scored, options, command=command, start=start)


def _load(units: UnitSet, index: int) -> Sentence:
    unit = units.load(index)
    assert isinstance(unit, Sentence)
    return unit


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
    """The mask; empty where there is none."""
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
