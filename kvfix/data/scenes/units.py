"""Units of the six probes, and questions, made of procedural scenes: the default data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from kvfix.data.scenes.paint import (
    SIZE,
    SPLITS,
    VERSION,
    Scene,
    Thing,
    backdrop,
    box_of,
    class_mask,
    generator,
    parts_xy,
    place_all,
    render,
    sample_scene,
    sample_thing,
)
from kvfix.data.scenes.questions import SKILLS, scene_question
from kvfix.data.scenes.shapes import SHAPES
from kvfix.data.scenes.talk import expression
from kvfix.data.units import MCQ, Clip, Episode, Group, Pair, Question, Sentence, Unit, UnitSet

SHOTS = 5  # support images of an episode
GROUP = 8  # images of a co-segmentation group
FRAMES = 10  # frames of a clip


def _scene_with(
    rng: np.random.Generator, shape: str, radius: tuple[float, float], others: int
) -> tuple[Scene, np.ndarray, Image.Image]:
    """A scene that shows `shape` once, unhidden by `others` other shapes; its mask and picture."""
    while True:
        wanted = sample_thing(rng, shape=shape, radius=radius)
        rest = [
            sample_thing(rng, radius=(0.1, 0.16), but_shapes=[shape])
            for _ in range(int(rng.integers(others + 1)))
        ]
        things = place_all(rng, [wanted, *rest], allowed=0.1)
        scene = backdrop(rng, sorted(things, key=lambda t: t.radius))
        picture = render(scene)
        mask_HW = class_mask(scene, picture.instance_HW, shape)
        if mask_HW.any():
            return scene, mask_HW, picture.image


def episode(split: str, index: int) -> Episode:
    """Five scenes and a query that share one shape among others."""
    rng = generator(split, index, "episode")
    shape = SHAPES[index % len(SHAPES)]
    drawn = [_scene_with(rng, shape, (0.16, 0.28), 2) for _ in range(SHOTS + 1)]
    name = f"{split}_episode_{index}"
    *support, (_, query_mask, query) = drawn
    return Episode(
        name,
        name,
        tuple(image for _, _, image in support),
        tuple(mask for _, mask, _ in support),
        query,
        query_mask,
        shape,
    )


def group(split: str, index: int) -> Group:
    """Scenes dominated by one shape in different colours, textures and grounds."""
    rng = generator(split, index, "group")
    shape = SHAPES[index % len(SHAPES)]
    drawn = [_scene_with(rng, shape, (0.24, 0.36), 1) for _ in range(GROUP)]
    name = f"{split}_group_{index}"
    return Group(name, name, tuple(i for _, _, i in drawn), tuple(m for _, m, _ in drawn))


def semantic(split: str, index: int) -> Sentence:
    """A shape's name and every pixel of that shape."""
    rng = generator(split, index, "semantic")
    shape = SHAPES[index % len(SHAPES)]
    _, mask, image = _scene_with(rng, shape, (0.16, 0.28), 3)
    name = f"{split}_semantic_{index}"
    return Sentence(name, name, image, shape, mask, shape)


def referring(split: str, index: int) -> Sentence:
    """An expression that fits one object of a scene, and that object's visible pixels."""
    rng = generator(split, index, "referring")
    while True:
        scene = sample_scene(rng, count=(2, 4), radius=(0.15, 0.24), allowed=0.15)
        i = int(rng.integers(len(scene.things)))
        text = expression(scene, scene.things[i], rng)
        picture = render(scene)
        mask = (picture.instance_HW == i + 1).astype(np.uint8)
        if text is not None and mask.any():
            break
    name = f"{split}_referring_{index}"
    return Sentence(name, name, picture.image, text, mask, scene.things[i].shape)


def pair(split: str, index: int) -> Pair:
    """Two objects of one shape with their named parts; colour, texture, size and angle differ."""
    rng = generator(split, index, "pair")
    shape = SHAPES[index % len(SHAPES)]
    drawn = []
    for _ in "st":
        scene, mask, image = _scene_with(rng, shape, (0.26, 0.38), 1)
        thing = next(t for t in scene.things if t.shape == shape)
        drawn.append((image, parts_xy(thing), box_of(mask)))
    (source, source_xy, _), (target, target_xy, box) = drawn
    name = f"{split}_pair_{index}"
    return Pair(name, name, source, target, source_xy, target_xy, box, shape)


def clip(split: str, index: int) -> Clip:
    """Two objects that move, turn and pass behind or before a third; the movers are 1 and 2."""
    rng = generator(split, index, "clip")
    while True:
        movers = [sample_thing(rng, radius=(0.16, 0.24)) for _ in "12"]
        still = sample_thing(rng, radius=(0.1, 0.15))
        things = place_all(rng, [*movers, still], allowed=0.1)
        if len(things) == 3:
            break
    base = backdrop(rng, things)
    speed = rng.uniform(-0.045, 0.045, (2, 2))
    turn = rng.uniform(-4, 4, 2)
    order = rng.permutation(3)  # who passes before whom
    frames, masks = [], []
    for t in range(FRAMES):
        moved = [_moved(m, speed[k] * t, float(turn[k] * t)) for k, m in enumerate(things[:2])]
        shown = [*moved, things[2]]
        picture = render(replace(base, things=tuple(shown[k] for k in order)))
        label_of = np.zeros(4, np.uint8)
        for place, k in enumerate(order):
            label_of[place + 1] = k + 1 if k < 2 else 0
        frames.append(picture.image)
        masks.append(label_of[picture.instance_HW])
    name = f"{split}_clip_{index}"
    return Clip(name, name, frames, masks)


def _moved(thing: Thing, by: np.ndarray, turn: float) -> Thing:
    """Move and turn, bouncing off the borders."""
    r = thing.radius
    x, y = (_bounce(c + d, r) for c, d in ((thing.x, by[0]), (thing.y, by[1])))
    return replace(thing, x=x, y=y, angle=thing.angle + turn)


def _bounce(c: float, r: float) -> float:
    span = 1 - 2 * r
    phase = np.mod(c - r, 2 * span)
    return float(r + (phase if phase <= span else 2 * span - phase))


def question(split: str, index: int) -> Question:
    """The skills in turn, so that any number of questions covers them evenly."""
    return scene_question(split, *_skill(index))


def _skill(index: int) -> tuple[str, int]:
    turn, skill = divmod(index, len(SKILLS))
    return tuple(SKILLS)[skill], turn


MAKERS: dict[str, Callable[[str, int], Unit]] = {
    "foreground_segmentation": episode,
    "cosegmentation": group,
    "semantic_segmentation": semantic,
    "referring_segmentation": referring,
    "semantic_correspondence": pair,
    "temporal_correspondence": clip,
}
SCENE_TASKS = (*MAKERS, MCQ)
# As many units of each task as keep `kvfix diagnose` within two minutes on two cores.
DEFAULT_N = {
    "foreground_segmentation": 64,
    "cosegmentation": 16,
    "semantic_segmentation": 96,
    "referring_segmentation": 96,
    "semantic_correspondence": 96,
    "temporal_correspondence": 24,
    MCQ: 40 * len(SKILLS),
}


def scene_units(task: str, *, split: str = "test", n: int | None = None) -> UnitSet:
    """The first `n` scene units of a task."""
    if task not in SCENE_TASKS:
        raise ValueError(f"task: scenes have {', '.join(SCENE_TASKS)}; found {task!r}")
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    n = DEFAULT_N[task] if n is None else n
    maker = question if task == MCQ else MAKERS[task]
    ids = tuple(_name(task, split, i) for i in range(n))
    digest = hashlib.sha256(f"scenes v{VERSION} {SIZE} {task} {split}".encode()).hexdigest()
    cluster = "question" if task == MCQ else "unit"
    skills = tuple(_skill(i)[0] for i in range(n)) if task == MCQ else ()
    return UnitSet(task, "scenes", split, ids, partial(maker, split), digest, cluster, skills)


def _name(task: str, split: str, index: int) -> str:
    """The id that the maker will give, without painting anything."""
    if task == MCQ:
        skill, turn = _skill(index)
        return f"{split}_{skill}_{turn}"
    return f"{split}_{MAKERS[task].__name__}_{index}"
