"""`kvfix score spair`: PCK of predicted keypoints, per image and per point, by box and by image."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.readers.spair import PairTruth, spair_truths
from kvfix.eval.metrics import (
    PairHits,
    box_size,
    image_size,
    pck_hits,
    pck_per_image,
    pck_per_point,
)
from kvfix.score.predictions import Lines
from kvfix.score.record import (
    Figure,
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

ALPHAS = (0.1, 0.05, 0.15)
HEADLINE = ("bbox", 0.1)
_Radius = tuple[str, float]  # what the radius is a share of, and the share


class _Pair(NamedTuple):
    truth: PairTruth
    hits: dict[_Radius, PairHits]


def score_spair(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Score predicted target keypoints; a missing pair counts as all wrong.

    Raises:
        ValueError: predictions that are of another form or of other pairs, an `out` that holds
            something else.
        FileNotFoundError: no predictions, or parts of the SPair-71k tree are missing.
    """
    start = time.monotonic()
    truths = spair_truths(options.truth)
    predicted = Lines(options.predictions, truths.units.ids, key="pair", read=_points)
    left_out: list[dict[str, str]] = []
    pairs = []
    for name, truth in each_truth(truths, left_out, watch):
        points = predicted.get(name)
        if points is not None and len(points) != len(truth.xy):
            raise ValueError(
                f"{options.predictions}: {name}: expected {len(truth.xy)} points, one a keypoint, "
                f"found {len(points)}"
            )
        pairs.append(_Pair(truth, _hits(points, truth)))
    figures = [
        figure
        for radius in sorted(pairs[0].hits, key=lambda r: r != HEADLINE)
        for figure in _figures(pairs, radius, None, options.seed)
    ]
    by_category: dict[str, list[_Pair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.truth.category, []).append(pair)
    for category, members in sorted(by_category.items()):
        figures += _figures(members, HEADLINE, category, options.seed)
    of = truths.units.task, truths.units.dataset
    rows = [
        unit_row(
            *(of, p.truth.id, p.truth.cluster, "PCK@0.1"),
            p.hits[HEADLINE].correct / p.hits[HEADLINE].points,
            category=p.truth.category,
            correct=p.hits[HEADLINE].correct,
            points=p.hits[HEADLINE].points,
        )
        for p in pairs
    ]
    scored = Scored(
        *(truths.units, predicted.card, {}, figures, rows, predicted.missing, predicted.unknown),
        left_out=left_out,
    )
    return finish(scored, options, command=command, start=start)


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


def _hits(points: np.ndarray | None, truth: PairTruth) -> dict[_Radius, PairHits]:
    sizes = {"bbox": box_size(truth.box), "img": image_size(truth.size)}
    return {
        (kind, alpha): PairHits(0, len(truth.xy))
        if points is None
        else pck_hits(points, truth.xy, size, alpha)
        for kind, size in sizes.items()
        for alpha in ALPHAS
    }


def _figures(pairs: list[_Pair], radius: _Radius, part: str | None, seed: int) -> list[Figure]:
    """Per image and per point."""
    hits = [p.hits[radius] for p in pairs]
    clusters = [p.truth.cluster for p in pairs]
    name = f"PCK@{radius[1]} {radius[0]}"
    shares = [h.correct / h.points for h in hits]
    return [
        mean_figure(
            f"{name}, per image", pck_per_image(hits), shares, clusters, seed=seed, part=part
        ),
        ratio_figure(
            f"{name}, per point",
            pck_per_point(hits),
            [h.correct for h in hits],
            [h.points for h in hits],
            clusters,
            seed=seed,
            part=part,
        ),
    ]
