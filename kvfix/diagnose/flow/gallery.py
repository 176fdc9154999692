"""A few units of every task with predictions drawn on them: see it, don't trust it.

The first unit of a task is drawn at several stages, so that a reader can flip between them; the
others at the best value layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.data.left_out import Attempts, LeftOut, naming
from kvfix.data.units import UnitSet, images_of
from kvfix.eval.probes.score import UnitScore
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.site import Site
from kvfix.eval.source import Source, View
from kvfix.ranks import in_order
from kvfix.report.pictures.overlays import clip_overlay, mask_overlay, match_overlay

SHOWN = 3  # units per task
FLIPPED = 4  # value layers of the first unit, beside the best one
FEW = 2  # the same of a clip, whose frames are all kept until its last stage is drawn

Overlay = dict[str, Any]


class Gallery(NamedTuple):
    """Pictures, and why some are missing."""

    overlays: list[Overlay]
    not_drawn: dict[str, str]  # id of a unit -> why


class Due(NamedTuple):
    """A unit that is to be drawn."""

    units: UnitSet
    number: int
    best: Site  # of its task


def due_pictures(
    unit_sets: Sequence[UnitSet], sites: Mapping[tuple[str, str], Site | None]
) -> list[Due]:
    """The first units of every task that has a best site."""
    return [
        Due(units, i, best)
        for units in unit_sets
        if (best := sites.get((units.task, units.dataset))) is not None
        for i in range(min(SHOWN, len(units)))
    ]


def draw_gallery(
    due: Sequence[Due],
    source: Source,
    folder: Path,
    *,
    tick: Callable[[str], None] = lambda task: None,
) -> Gallery:
    """Score these units again, and draw what is predicted; ranks of one launch share them.

    Pictures go to `figures/overlays/` of the run folder; there is one entry per picture, for
    `run.json`, and why there is none of a unit.
    """
    attempts = Attempts(len(due), proven=True)  # what was measured stands without its picture
    drawn = in_order(
        len(due),
        lambda i: attempts.do(partial(_draw, due[i], source, folder)),
        lambda i: tick(due[i].units.task),
    )
    gallery = Gallery([], {})
    for (units, number, _), overlays in zip(due, drawn, strict=True):
        if isinstance(overlays, LeftOut):
            gallery.not_drawn[units.ids[number]] = overlays.why
        else:
            gallery.overlays.extend(overlays)
    return gallery


def _stages(source: Source, best: Site, task: str) -> list[Site]:
    """The stages to flip through: before the language model, and value layers evenly apart."""
    layers = source.sites(best.site)
    count = FEW if task == "temporal_correspondence" else FLIPPED
    apart = {round(k) for k in np.linspace(0, len(layers) - 1, count)}
    before = () if TASKS[task].by_text else ("vision", "projector")
    return [
        *(site for kind in before if kind in source.kinds for site in source.sites(kind)),
        *(site for k, site in enumerate(layers) if k in apart or site == best),
    ]


class _Kept:
    """A source that keeps what it saw of a unit, so that drawing many stages costs one pass.

    A probe asks for the same images in the same order whatever the stage, so what was seen is kept
    in the order of asking. All layers are served, as when the unit was scored: a clustering may
    turn on the last bit, which the size of a batch moves.
    """

    def __init__(self, source: Source):
        self.source, self.kinds, self.sites = source, source.kinds, source.sites
        self._seen: list[Any] = []
        self._asked = 0

    def again(self) -> _Kept:
        """Serve from the start."""
        self._asked = 0
        return self

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        yield from self._once(lambda: list(self.source.views(images)))

    def clip(self, frames: Sequence[Image.Image], *, fps: float) -> Iterator[View]:
        yield from self._once(lambda: list(self.source.clip(frames, fps=fps)))

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        return self._once(lambda: self.source.spoken(image, text))

    def _once(self, ask: Callable[[], Any]) -> Any:
        if self._asked == len(self._seen):
            self._seen.append(ask())
        self._asked += 1
        return self._seen[self._asked - 1]


def _draw(due: Due, source: Source, folder: Path) -> list[Overlay]:
    """Draw what a unit's probe predicts at each stage, and save the pictures."""
    units, number, best = due
    stages = _stages(source, best, units.task) if number == 0 else [best]
    unit, kept = units.load(number), _Kept(source)
    return [
        _draw_stage(units, number, unit, kept.again(), site, folder) | {"best": site == best}
        for site in stages
    ]


def _draw_stage(
    units: UnitSet, number: int, unit: Any, source: Source, site: Site, folder: Path
) -> Overlay:
    index = source.sites(site.site).index(site)
    with naming(images_of(unit)):
        score = TASKS[units.task].run(unit, source, (site.site, index))[site.site]
        picture, caption = _DRAW[units.task](unit, score)
    where = site.site if site.layer is None else f"{site.site}{site.layer}"
    name = f"figures/overlays/{units.task}.{units.dataset}.{number}.{where}.webp"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=80)
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


def _strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, at the height of the first."""
    height, gap = pictures[0].height, 6
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
