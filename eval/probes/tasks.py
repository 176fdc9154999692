"""The table of tasks: how a unit's images are read, and which probe scores them.

Each entry turns (unit, source) into kind -> `UnitScore` with one forward pass an image. With `keep`
= (kind, index) only that kind is scored and its prediction is kept for an overlay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kvfix.eval.grid import to_grid
from kvfix.eval.probes.correspondence import ClipScorer, score_pair
from kvfix.eval.probes.cosegmentation import score_group
from kvfix.eval.probes.score import UnitScore
from kvfix.eval.probes.segmentation import (
    mask_ceiling,
    score_episode,
    score_sentence,
)
from kvfix.eval.source import Source

Keep = tuple[str, int] | None
Scores = dict[str, UnitScore]


class Task(NamedTuple):
    """A task of the suite."""

    metric: str
    run: Callable[[Any, Source, Keep], Scores]
    by_text: bool = False  # needs a text's vector, which an encoder alone does not have


def _kinds(features: dict, keep: Keep) -> list[tuple[str, int | None]]:
    """The kinds to score, each with the site index whose prediction is kept."""
    if keep is not None:
        return [keep]
    return [(kind, None) for kind in features]


def foreground(unit: Any, source: Source, keep: Keep = None) -> Scores:
    """Five-shot foreground segmentation."""
    *support, query = source.views([*unit.support, unit.query])
    layouts = [v.layout for v in support]
    labels = [to_grid(m, lay) for m, lay in zip(unit.support_masks, layouts, strict=True)]
    ceiling = mask_ceiling(unit.query_mask, query.layout)
    return {
        kind: score_episode(
            [v.features[kind] for v in support],
            unit.support_masks,
            layouts,
            query.features[kind],
            unit.query_mask,
            query.layout,
            keep=index,
            labels=labels,
            ceiling=ceiling,
        )
        for kind, index in _kinds(query.features, keep)
    }


def cosegmentation(unit: Any, source: Source, keep: Keep = None) -> Scores:
    """Co-segmentation of a group of images by all kinds at once."""
    views = list(source.views(unit.images))
    kinds = [kind for kind, _ in _kinds(views[0].features, keep)]
    features = {kind: [v.features[kind] for v in views] for kind in kinds}
    return score_group(features, unit.masks, [v.layout for v in views], keep=keep)


def by_text(unit: Any, source: Source, keep: Keep = None) -> Scores:
    """Segmentation by the value of a text's last token; sites without text have no score."""
    view, said = source.spoken(unit.image, unit.text)
    ceiling = mask_ceiling(unit.mask, view.layout)
    return {
        kind: score_sentence(
            said[kind], view.features[kind], unit.mask, view.layout, keep=index, ceiling=ceiling
        )
        for kind, index in _kinds(said, keep)
    }


def semantic_correspondence(unit: Any, source: Source, keep: Keep = None) -> Scores:
    """Nearest neighbours of keypoints."""
    a, b = source.views([unit.source, unit.target])
    return {
        kind: score_pair(
            a.features[kind],
            a.layout,
            unit.source_xy,
            b.features[kind],
            b.layout,
            unit.target_xy,
            unit.target_box,
            keep=index,
        )
        for kind, index in _kinds(a.features, keep)
    }


def temporal_correspondence(unit: Any, source: Source, keep: Keep = None) -> Scores:
    """Mask propagation through all kinds at once; a clip streams unless it is read as a video."""
    last = len(unit.masks) - 1  # the last frame does not count and is not read
    views = source.clip(unit.frames[:last], fps=unit.fps)
    first = next(views)
    kinds = [kind for kind, _ in _kinds(first.features, keep)]
    scorer = ClipScorer(
        {kind: first.features[kind] for kind in kinds}, first.layout, unit.masks[0], keep=keep
    )
    for mask, view in zip(unit.masks[1:last], views, strict=True):
        scorer.step(view.features, mask)
    return scorer.result()


TASKS = {
    "foreground_segmentation": Task("IoU", foreground),
    "cosegmentation": Task("Jaccard", cosegmentation),
    "semantic_segmentation": Task("IoU", by_text, by_text=True),
    "referring_segmentation": Task("IoU", by_text, by_text=True),
    "semantic_correspondence": Task("PCK@0.1", semantic_correspondence),
    "temporal_correspondence": Task("J&F", temporal_correspondence),
}
