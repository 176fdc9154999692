"""SPair-71k: PCK of predicted keypoints, per image and per point, by box and by image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvfix.data.readers.spair import PairTruth
from kvfix.data.units import Truths
from kvfix.eval.metrics.points import PairHits, box_size, image_size, pck_hits
from kvfix.eval.pooled import mean, per_point
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.predictions import Lines
from kvfix.score.record import Scoring
from kvfix.wording import shown

HEADLINE = ("bbox", 0.1)
RADII = [(kind, alpha) for kind in ("bbox", "img") for alpha in (0.1, 0.05, 0.15)]
_Job = Scoring[PairTruth, Lines[np.ndarray]]


def predictions(path: Path, truths: Truths[PairTruth]) -> Lines[np.ndarray]:
    """Target keypoints, a line for each pair."""
    return Lines(path, truths.units.ids, key="pair", read=_points)


def rows(job: _Job, name: str, truth: PairTruth) -> Iterator[ProbeRow]:
    """One for each radius; that of the headline is written."""
    points = job.predictions.get(name)
    if points is not None and len(points) != len(truth.xy):
        raise ValueError(
            f"{job.predictions.path}: {name}: expected {len(truth.xy)} points, one a keypoint, "
            f"found {len(points)}"
        )
    size_of = {"bbox": box_size(truth.box), "img": image_size(truth.size)}
    for kind, alpha in RADII:
        hits = PairHits(0, len(truth.xy))
        if points is not None:
            hits = pck_hits(points, truth.xy, size_of[kind], alpha)
        yield job.row(
            *(name, truth.cluster, _metric(kind, alpha), hits.correct / hits.points),
            category=truth.category,
            **hits._asdict(),
        )


def results(job: _Job) -> Iterator[Result]:
    """By every radius, then of every category by the headline's."""
    for radius in RADII:
        yield from _both(job, radius)
    for category in sorted({r.category for r in job.rows}):
        yield from _both(job, HEADLINE, category, category=category)


def _metric(kind: str, alpha: float) -> str:
    return f"PCK@{alpha}" + ("" if (kind, alpha) == HEADLINE else f" {kind}")


def _both(
    job: _Job, radius: tuple[str, float], part: str | None = None, **fields: str
) -> Iterator[Result]:
    columns, (kind, alpha) = job.columns(metric=_metric(*radius), **fields), radius
    for how, figure in (("image", mean), ("point", per_point)):
        yield job.result(f"PCK@{alpha} {kind}, per {how}", figure(columns), part=part)


def _points(line: dict[str, Any], where: str) -> np.ndarray:
    try:
        points = np.asarray(line.get("xy"), dtype=np.float64)
    except (TypeError, ValueError):
        points = np.array(np.nan)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(
            f'{where}: expected "xy": [[x, y], ...] in pixels of the target photo, found '
            f"{shown(line.get('xy'))}"
        )
    return points
