"""MSRC: Jaccard index and pixel precision of predicted co-segmentation masks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvfix.data.units import Truths
from kvfix.eval.metrics.masks import group_score, overlap
from kvfix.eval.pooled import mean
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.predictions import MaskFolder, read_binary
from kvfix.score.record import Scoring

_Masks = dict[str, np.ndarray]
_Job = Scoring[_Masks, MaskFolder]


def predictions(path: Path, truths: Truths[_Masks]) -> MaskFolder:
    """A mask for each image, of which only the groups are known before their truth is read."""
    return MaskFolder(path, suffixes=(".png", ".bmp"))


def rows(job: _Job, name: str, truth: _Masks) -> Iterator[ProbeRow]:
    """A group's means over its images."""
    read = partial(read_binary, soft=True)
    found = {
        image: overlap(job.predictions.read(f"{name}/{image}", read, truth_HW), truth_HW)
        for image, truth_HW in truth.items()
    }
    score = group_score(list(found.values()))
    yield job.row(
        *(name, name, "J", score.jaccard),
        precision=score.precision,
        images={image: counts.iou for image, counts in found.items()},
    )


def results(job: _Job) -> Iterator[Result]:
    """J and P, means over groups."""
    yield job.result("J", mean(job.columns()))
    yield job.result("P", mean(job.columns(), "precision"))


def details(job: _Job, results: list[Result]) -> dict[str, Any]:
    """Both of each group."""
    return {
        "groups": {r.id: {"jaccard": r.score, "precision": r.number("precision")} for r in job.rows}
    }
