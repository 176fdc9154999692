"""The gallery: what is drawn is what was scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_source import FakeSource
from PIL import Image

from kvfix.data.scenes.units import scene_units
from kvfix.data.units import BadUnit
from kvfix.diagnose.flow.gallery import SHOWN, draw_gallery, due_pictures
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.site import Site
from kvfix.eval.suite import run_task

BEST = Site("value", 1)


@pytest.mark.parametrize("task", TASKS)
def test_the_first_units_of_a_task_are_drawn_with_their_scores(task: str, tmp_path: Path) -> None:
    n = 2 if task == "temporal_correspondence" else SHOWN + 1
    units, source, ticks = scene_units(task, n=n), FakeSource(), []
    overlays = draw_gallery(
        due_pictures([units], {(task, "scenes"): BEST}), source, tmp_path, tick=ticks.append
    ).overlays
    flips = [o["layer"] for o in overlays if o["id"] == units.ids[0]]
    assert flips == [0, 1, 2]
    overlays = [o for o in overlays if o["best"]]
    assert ticks == [task] * min(n, SHOWN) and [o["id"] for o in overlays] == list(
        units.ids[:SHOWN]
    )
    rows = run_task(units.head(1), FakeSource(), tmp_path).rows
    [scored] = [r for r in rows if (r.site, r.layer) == BEST[:2]]
    assert overlays[0]["score"] == pytest.approx(scored.score)
    for overlay in overlays:
        assert (overlay["task"], overlay["dataset"]) == (task, "scenes")
        assert (overlay["site"], overlay["layer"]) == BEST[:2]
        assert overlay["caption"] and overlay["file"].startswith("figures/overlays/")
        with Image.open(tmp_path / overlay["file"]) as picture:
            assert min(picture.size) >= 100 and np.asarray(picture).std() > 0
    assert len({o["file"] for o in overlays}) == len(overlays)


def test_the_site_decides_what_is_drawn(tmp_path: Path) -> None:
    units = scene_units("semantic_segmentation", n=1)
    pictures = []
    for layer in (0, 1, 2):
        drawn = draw_gallery(
            due_pictures([units], {(units.task, "scenes"): Site("value", layer)}),
            FakeSource(noise=(0.5, 0.0, 5.0)),
            tmp_path / str(layer),
        ).overlays
        [overlay] = [o for o in drawn if o["best"]]
        assert overlay["layer"] == layer
        pictures.append((tmp_path / str(layer) / overlay["file"]).read_bytes())
    assert len(set(pictures)) == 3


def test_a_broken_unit_and_a_task_without_a_site_are_passed_over(tmp_path: Path) -> None:
    units = scene_units("semantic_correspondence", n=3)

    def load(i: int) -> object:
        if i == 0:
            raise BadUnit("0.jpg: expected a photo, found rubbish")
        return units.load(i)

    others = scene_units("cosegmentation", n=1)
    sites = {(units.task, "scenes"): BEST, (others.task, "scenes"): None}
    due = due_pictures([replace(units, load=load), others], sites)
    overlays = draw_gallery(due, FakeSource(), tmp_path).overlays
    assert list(dict.fromkeys(o["id"] for o in overlays)) == list(units.ids[1:])


@pytest.mark.parametrize("task", TASKS)
def test_many_stages_of_a_unit_cost_one_pass_and_score_as_the_probe_does(
    task: str, tmp_path: Path
) -> None:
    units, once, drawn = scene_units(task, n=1), FakeSource(), FakeSource()
    rows = run_task(units, once, tmp_path).rows
    scores = {row.layer: row.score for row in rows if row.site == "value"}
    due = due_pictures([units], {(task, "scenes"): BEST})
    overlays = draw_gallery(due, drawn, tmp_path).overlays
    assert drawn.seen == once.seen
    assert {o["layer"]: o["score"] for o in overlays} == pytest.approx(scores)


def test_a_match_is_called_right_as_the_probe_calls_it(tmp_path: Path) -> None:
    units = scene_units("semantic_correspondence", n=3)
    due = due_pictures([units], {(units.task, "scenes"): BEST})
    overlays = draw_gallery(due, FakeSource(), tmp_path).overlays
    for overlay in overlays:
        found, _, rest = overlay["caption"].partition(": ")[2].partition(" of ")
        assert int(found) / int(rest.split()[0]) == pytest.approx(overlay["score"])
