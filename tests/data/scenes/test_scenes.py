"""Scenes: the same from a seed everywhere, exact masks and parts, units that hold what they say."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kvfix.data.scenes.paint import (
    SIZE,
    SPLITS,
    Rendered,
    Scene,
    Thing,
    generator,
    parts_xy,
    place_all,
    render,
    sample_scene,
    sample_thing,
    seed_of,
)
from kvfix.data.scenes.questions import SKILLS, scene_question
from kvfix.data.scenes.shapes import COLOURS, HOLES, OUTLINES, SHAPES, TEXTURES, placed
from kvfix.data.scenes.talk import conversation, expression
from kvfix.data.scenes.units import MAKERS, scene_units
from kvfix.data.units import Clip, Episode, Group, Pair, Sentence

units_module = sys.modules["kvfix.data.scenes.units"]


def _parts(value: object) -> Iterator[bytes]:
    """Everything a unit holds, as bytes."""
    if isinstance(value, (Image.Image, np.ndarray)):
        yield value.tobytes()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif hasattr(value, "__dict__"):
        yield from _parts(list(vars(value).values()))
    else:
        yield repr(value).encode()


def everything_digest() -> str:
    """One digest over units, questions and talk of a few seeds."""
    whole = hashlib.sha256()
    made: list[object] = [maker("test", 3) for maker in MAKERS.values()]
    made += [scene_question("val", skill, 1) for skill in SKILLS]
    for i in range(40):
        rng = generator("train", i, "lesson")
        made.append(conversation(sample_scene(rng), rng, turns=8))
    for part in _parts(made):
        whole.update(part)
    return whole.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_every_process() -> None:
    here = everything_digest()
    assert everything_digest() == here
    code = "import test_scenes, sys; print(test_scenes.everything_digest())"
    # Sets of strings iterate in another order under another salt.
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == here


def test_importing_the_data_package_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from kvfix.data.catalog import load_units\n"
        "assert load_units(['scenes'])\n"
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_splits_draw_from_disjoint_seed_ranges() -> None:
    ranges = sorted(SPLITS.values())
    assert all(low < high <= after for (low, high), (after, _) in pairwise(ranges))
    for split, (low, high) in SPLITS.items():
        assert seed_of(split, 0) == low and seed_of(split, high - low - 1) == high - 1
        with pytest.raises(ValueError, match="index: expected"):
            seed_of(split, high - low)
        with pytest.raises(ValueError, match="index: expected"):
            seed_of(split, -1)
    with pytest.raises(ValueError, match="train, val, test"):
        seed_of("dev", 0)
    pictures = {
        render(sample_scene(generator(s, i, "scene"))).image.tobytes()
        for s in SPLITS
        for i in range(5)
    }
    assert len(pictures) == 15


def _inside(polygon_N2: np.ndarray, size: int) -> np.ndarray:
    """Even-odd rule at pixel centres, bool (size, size): knows nothing of the drawing library."""
    y, x = np.mgrid[0:size, 0:size].astype(float)
    odd = np.zeros((size, size), bool)
    for (xa, ya), (xb, yb) in zip(polygon_N2, np.roll(polygon_N2, -1, 0), strict=True):
        if ya != yb:
            odd ^= ((ya > y) != (yb > y)) & (x < (xb - xa) * (y - ya) / (yb - ya) + xa)
    return odd


def _shown(things: tuple[Thing, ...], size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Instance map by painting order, and where it is certain: 2 pixels off all outlines."""
    instance_HW = np.zeros((size, size), np.uint8)
    sure_HW = np.ones((size, size), bool)
    for i, thing in enumerate(things):
        centre = (thing.x * size - 0.5, thing.y * size - 0.5)
        r = thing.radius * size
        body = _inside(placed(OUTLINES[thing.shape], centre, r, thing.angle), size)
        if thing.shape in HOLES:
            y, x = np.mgrid[0:size, 0:size]
            body &= np.hypot(x - centre[0], y - centre[1]) > HOLES[thing.shape] * r
        instance_HW[body] = i + 1
        around = [
            f(body, size=5, mode="nearest")
            for f in (ndimage.maximum_filter, ndimage.minimum_filter)
        ]
        sure_HW &= around[0] == around[1]
    return instance_HW, sure_HW


def test_the_instance_map_is_the_silhouettes_in_painting_order() -> None:
    seen = set()
    for i in range(30):
        scene = sample_scene(generator("test", i, "mask"), count=(3, 5), allowed=0.5)
        expected_HW, sure_HW = _shown(scene.things)
        assert sure_HW.mean() > 0.6
        assert (render(scene).instance_HW == expected_HW)[sure_HW].all()
        seen |= {t.shape for t in scene.things}
    assert seen == set(SHAPES)


def test_each_instance_shows_its_own_paint_up_to_the_last_pixel() -> None:
    for i in range(20):
        scene = sample_scene(generator("test", i, "paint"), count=(3, 5), allowed=0.5)
        scene = replace(scene, style="flat")
        picture = render(scene)
        rgb_HW3 = np.asarray(picture.image)
        for k, thing in enumerate(scene.things):
            paints = np.unique(rgb_HW3[picture.instance_HW == k + 1], axis=0)
            assert len(paints) <= (1 if thing.texture == "plain" else 2), thing
        without = render(replace(scene, things=scene.things[1:]))
        ground = (picture.instance_HW == 0) & (without.instance_HW == 0)
        assert (rgb_HW3 == np.asarray(without.image))[ground].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_named_parts_lie_on_the_object(shape: str) -> None:
    for i in range(20):
        thing = sample_thing(generator("test", i, "parts"), shape=shape, radius=(0.12, 0.38))
        scene = sample_scene(generator("test", i, "ground"))
        body_HW = render(replace(scene, things=(thing,))).instance_HW == 1
        for x, y in np.rint(parts_xy(thing)).astype(int):
            if 0 <= x < SIZE and 0 <= y < SIZE:
                assert body_HW[y, x], (thing, x, y)


def test_placing_keeps_the_first_and_honours_the_allowed_overlap() -> None:
    for i in range(50):
        rng = generator("test", i, "place")
        things = [sample_thing(rng, radius=(0.2, 0.3)) for _ in range(5)]
        done = place_all(rng, things, allowed=0.1)
        assert done[0] == things[0]
        for k, a in enumerate(done):
            for b in done[:k]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= 0.9 * (a.radius + b.radius) - 1e-9


def fits(text: str, scene: Scene) -> list[int]:
    """Objects that a reader takes `text` for: `the [colour | texture | left | right] shape`."""
    *adjective, shape = text.removeprefix("the ").split()
    found = [i for i, t in enumerate(scene.things) if t.shape == shape]
    for word in adjective:
        if word in COLOURS:
            found = [i for i in found if scene.things[i].colour == word]
        elif word in TEXTURES:
            found = [i for i in found if scene.things[i].texture == word]
        else:
            ends = {"left": min, "right": max}[word]
            edge = ends(scene.things[i].x for i in found)
            found = [i for i in found if abs(scene.things[i].x - edge) < 0.05]
    return found


def test_an_expression_fits_its_object_and_no_other() -> None:
    kinds = set()
    for i in range(400):
        rng = generator("test", i, "expression")
        scene = sample_scene(rng, count=(2, 5))
        if i % 2:  # many of one shape, so that colour, texture and side must tell them apart
            scene = replace(scene, things=tuple(replace(t, shape="star") for t in scene.things))
        for k, thing in enumerate(scene.things):
            text = expression(scene, thing, rng)
            if text is not None:
                assert fits(text, scene) == [k], (text, scene)
                word = text.split()[1]
                kinds.add("side" if word in ("left", "right") else len(text.split()))
    assert kinds == {"side", 2, 3}


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Scene, Rendered]]:
    """Every scene that unit makers paint, in order."""
    kept: list[tuple[Scene, Rendered]] = []

    def spy(scene: Scene, size: int = SIZE) -> Rendered:
        kept.append((scene, render(scene, size)))
        return kept[-1][1]

    monkeypatch.setattr(units_module, "render", spy)
    return kept


Painted = list[tuple[Scene, Rendered]]


def _scene_of(painted: Painted, image: Image.Image) -> tuple[Scene, np.ndarray]:
    return next((s, p.instance_HW) for s, p in painted if p.image is image)


@pytest.mark.parametrize("index", range(8))
def test_class_units_mask_every_pixel_of_their_shape(painted: Painted, index: int) -> None:
    episode, group, said = (
        MAKERS[t]("test", index)
        for t in ("foreground_segmentation", "cosegmentation", "semantic_segmentation")
    )
    assert isinstance(episode, Episode) and isinstance(group, Group) and isinstance(said, Sentence)
    shape = SHAPES[index % len(SHAPES)]
    assert episode.category == said.text == said.category == shape
    shown = [
        *zip(episode.support, episode.support_masks, strict=True),
        (episode.query, episode.query_mask),
        *zip(group.images, group.masks, strict=True),
        (said.image, said.mask),
    ]
    assert len(shown) == 5 + 1 + 8 + 1
    for image, mask_HW in shown:
        scene, instance_HW = _scene_of(painted, image)
        at = [i for i, t in enumerate(scene.things) if t.shape == shape]
        assert len(at) == 1
        assert mask_HW.dtype == np.uint8 and (mask_HW == (instance_HW == at[0] + 1)).all()
        assert mask_HW.sum() > 100


def test_a_referring_mask_is_the_named_object(painted: Painted) -> None:
    for index in range(30):
        said = MAKERS["referring_segmentation"]("test", index)
        assert isinstance(said, Sentence)
        scene, instance_HW = _scene_of(painted, said.image)
        (k,) = fits(said.text, scene)
        assert (said.mask == (instance_HW == k + 1)).all() and said.mask.any()
        assert said.category == scene.things[k].shape


def test_a_pair_shows_the_same_parts_twice(painted: Painted) -> None:
    for index in range(16):
        pair = MAKERS["semantic_correspondence"]("test", index)
        assert isinstance(pair, Pair)
        for image, xy in ((pair.source, pair.source_xy), (pair.target, pair.target_xy)):
            scene, instance_HW = _scene_of(painted, image)
            k = next(i for i, t in enumerate(scene.things) if t.shape == pair.category)
            thing = scene.things[k]
            # Back in the shape's own coordinates the parts are the table's, in its order.
            a = np.deg2rad(thing.angle)
            own = (xy + 0.5) / SIZE - (thing.x, thing.y)
            own = own @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) / thing.radius
            assert np.allclose(own, sys.modules["kvfix.data.scenes.shapes"].PARTS[pair.category])
            inside = ((xy > 0) & (xy < SIZE - 1)).all(1)
            x, y = np.rint(xy[inside]).astype(int).T
            assert (instance_HW[y, x] == k + 1).all()
        ys, xs = np.nonzero(instance_HW == k + 1)
        assert pair.target_box == (xs.min(), ys.min(), xs.max(), ys.max())


def test_clip_labels_follow_their_objects_and_depth_never_changes(painted: Painted) -> None:
    hidden = 0
    for index in range(8):
        painted.clear()
        clip = MAKERS["temporal_correspondence"]("test", index)
        assert isinstance(clip, Clip) and len(clip.frames) == len(clip.masks) == len(painted)
        assert set(np.unique(clip.masks[0])) == {0, 1, 2}

        def who(t: Thing) -> tuple[object, ...]:
            return t.shape, t.colour, t.texture, t.radius

        depth = [who(t) for t in painted[0][0].things]
        still = min(painted[0][0].things, key=lambda t: t.radius)
        label = {who(still): 0}
        for (scene, _), mask_HW in zip(painted, clip.masks, strict=True):
            assert [who(t) for t in scene.things] == depth
            expected_HW, sure_HW = _shown(scene.things)
            for k, thing in enumerate(scene.things):
                here = (expected_HW == k + 1) & sure_HW
                if here.any():
                    (value,) = np.unique(mask_HW[here])
                    assert label.setdefault(who(thing), int(value)) == value
            assert not mask_HW[(expected_HW == 0) & sure_HW].any()
            alone = sum((_shown((t,))[0] > 0).sum() for t in scene.things)
            hidden += alone > (expected_HW > 0).sum() + 50
        assert sorted(label.values()) == [0, 1, 2]
        moved = [
            np.hypot(a.x - b.x, a.y - b.y)
            for a, b in zip(painted[0][0].things, painted[-1][0].things, strict=True)
        ]
        assert moved[depth.index(who(still))] == 0 and sum(m > 0 for m in moved) == 2
    assert hidden > 5  # objects do pass behind each other


def test_scene_units_are_named_before_they_are_made() -> None:
    sets = {task: scene_units(task, n=3) for task in MAKERS}
    assert len({s.sha256 for s in sets.values()}) == len(sets)
    for task, units in sets.items():
        assert units.task == task and units.dataset == "scenes" and units.split == "test"
        for i in (0, 2):
            assert units.load(i).id == units.ids[i]
        assert scene_units(task, n=9).ids[:3] == units.ids
        assert scene_units(task, split="val").sha256 != units.sha256
        assert units.head(2).ids == units.ids[:2] and units.head(None) is units


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: scene_units("tracking"), "task: scenes have foreground_segmentation"),
        (lambda: scene_units("cosegmentation", split="dev"), "split: expected one of train"),
    ],
)
def test_unknown_names_are_refused(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()
