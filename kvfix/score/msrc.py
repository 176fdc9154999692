"""`kvfix score msrc`: Jaccard index and pixel precision of predicted co-segmentation masks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.readers.msrc import msrc_truths
from kvfix.eval.metrics import Overlap, cosegmentation, overlap
from kvfix.score.predictions import Masks, check_size, read_binary
from kvfix.score.record import (
    Options,
    Outcome,
    Scored,
    Watch,
    each_truth,
    finish,
    mean_figure,
    unit_row,
)

_SUFFIXES = (".png", ".bmp")


class _Group(NamedTuple):
    name: str
    images: dict[str, Overlap]


def score_msrc(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Score one mask an image; a missing one counts as empty. A group is the unit.

    Raises:
        ValueError: masks of another form or size, an `out` that holds something else.
        FileNotFoundError: no folder of masks, or no group with its truth.
    """
    start = time.monotonic()
    truths = msrc_truths(options.truth)
    units = truths.units
    left_out: list[dict[str, str]] = []
    masks = list(each_truth(truths, left_out, watch))
    ids = [f"{group}/{image}" for group, images in masks for image in images]
    predicted = Masks(options.predictions, ids, suffixes=_SUFFIXES)
    groups = [
        _Group(
            name,
            {
                image: overlap(_read(predicted.path(f"{name}/{image}"), truth_HW), truth_HW)
                for image, truth_HW in images.items()
            },
        )
        for name, images in masks
    ]
    total = cosegmentation({g.name: list(g.images.values()) for g in groups})
    names, seed = list(total.groups), options.seed
    figures = [
        mean_figure(
            "J", total.jaccard, [g.jaccard for g in total.groups.values()], names, seed=seed
        ),
        mean_figure(
            "P", total.precision, [g.precision for g in total.groups.values()], names, seed=seed
        ),
    ]
    of = units.task, units.dataset
    rows = [
        unit_row(
            *(of, g.name, g.name, "J", total.groups[g.name].jaccard),
            precision=total.groups[g.name].precision,
            images={image: o.iou for image, o in g.images.items()},
        )
        for g in groups
    ]
    scored = Scored(
        *(units, predicted.card, {}, figures, rows),
        *(predicted.missing, predicted.unknown, left_out),
        details={"groups": {name: g._asdict() for name, g in total.groups.items()}},
        expected=len(ids),
    )
    return finish(scored, options, command=command, start=start)


def _read(path: Path | None, truth_HW: np.ndarray) -> np.ndarray:
    """The predicted mask, bool; empty where there is none."""
    if path is None:
        return np.zeros(truth_HW.shape, bool)
    mask_HW = read_binary(path, soft=True)
    check_size(path, mask_HW, truth_HW)
    return mask_HW
