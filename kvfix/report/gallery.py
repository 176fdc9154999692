"""A few units of every task with the best value layer's prediction drawn on them: see it, don't
trust it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.left_out import Attempts, LeftOut, naming
from kvfix.data.units import UnitSet, images_of
from kvfix.eval.probes.score import UnitScore
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.source import Site, Source
from kvfix.report.overlays import clip_overlay, mask_overlay, match_overlay

SHOWN = 3  # units a task

Overlay = dict[str, Any]


class Gallery(NamedTuple):
    """Pictures, and why some are missing."""

    overlays: list[Overlay]
    not_drawn: dict[str, str]  # id of a unit -> why


def draw_gallery(
    unit_sets: Sequence[UnitSet],
    source: Source,
    sites: Mapping[tuple[str, str], Site | None],
    folder: Path,
    *,
    tick: Callable[[str], None] = lambda task: None,
) -> Gallery:
    """Score the first units again at one site and draw what it predicts.

    Args:
        unit_sets: as measured.
        source: the model.
        sites: (task, dataset) -> the site to show.
        folder: the run folder; pictures go to `figures/overlays/`.
        tick: called after each task.

    Returns:
        One entry a picture, for `run.json`, and why there is none of a unit.
    """
    gallery = Gallery([], {})
    for units in unit_sets:
        site = sites.get((units.task, units.dataset))
        if site is None:
            continue
        index = source.sites(site.site).index(site)
        shown = min(SHOWN, len(units))
        attempts = Attempts(shown, proven=True)  # what was measured stands without its picture
        for i in range(shown):
            overlay = attempts.do(partial(_draw, units, i, source, site, index, folder))
            if isinstance(overlay, LeftOut):
                gallery.not_drawn[units.ids[i]] = overlay.why
            else:
                gallery.overlays.append(overlay)
        tick(units.task)
    return gallery


def _draw(
    units: UnitSet, number: int, source: Source, site: Site, index: int, folder: Path
) -> Overlay:
    """Score a unit at one site, draw it, save the picture."""
    unit = units.load(number)
    with naming(images_of(unit)):
        score = TASKS[units.task].run(unit, source, (site.site, index))[site.site]
        picture, caption = _DRAW[units.task](unit, score)
    name = f"figures/overlays/{units.task}.{units.dataset}.{number}.png"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return {
        "task": units.task,
        "dataset": units.dataset,
        "site": site.site,
        "layer": site.layer,
        "id": unit.id,
        "score": float(score.score_S[index]),
        "file": name,
        "caption": caption,
    }


def _episode(unit: Any, score: UnitScore) -> tuple[Image.Image, str]:
    return mask_overlay(unit.query, score.kept, unit.query_mask), f"query: {unit.category}"


def _group(unit: Any, score: UnitScore) -> tuple[Image.Image, str]:
    assert isinstance(score.kept, tuple)
    drawn = [
        mask_overlay(image, mask, truth)
        for image, mask, truth in zip(unit.images, score.kept, unit.masks, strict=True)
    ]
    return _strip(drawn[:5]), "the first images of the group"


def _sentence(unit: Any, score: UnitScore) -> tuple[Image.Image, str]:
    return mask_overlay(unit.image, score.kept, unit.mask), f"text: {unit.text}"


def _pair(unit: Any, score: UnitScore) -> tuple[Image.Image, str]:
    assert isinstance(score.kept, np.ndarray)
    box = unit.target_box
    radius = 0.1 * max(box[2] - box[0], box[3] - box[1])
    correct = np.linalg.norm(score.kept - unit.target_xy, axis=1) <= radius
    picture = match_overlay(
        unit.source, unit.target, unit.source_xy, score.kept, unit.target_xy, correct
    )
    return picture, f"{unit.category}: {int(correct.sum())} of {len(correct)} parts found"


def _clip(unit: Any, score: UnitScore) -> tuple[Image.Image, str]:
    labels = list(score.kept) if score.kept is not None else []
    frames = [unit.frames[t] for t in range(len(labels))]
    return clip_overlay(frames, labels), "the first frame's masks, carried along"


def _strip(pictures: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Pictures side by side, at the height of the first."""
    height = pictures[0].height
    scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    width = sum(p.width for p in scaled) + gap * (len(scaled) - 1)
    strip = Image.new("RGB", (width, height), (128, 128, 128))
    x = 0
    for picture in scaled:
        strip.paste(picture, (x, 0))
        x += picture.width + gap
    return strip


_DRAW: dict[str, Callable[[Any, UnitScore], tuple[Image.Image, str]]] = {
    "foreground_segmentation": _episode,
    "cosegmentation": _group,
    "semantic_segmentation": _sentence,
    "referring_segmentation": _sentence,
    "semantic_correspondence": _pair,
    "temporal_correspondence": _clip,
}
