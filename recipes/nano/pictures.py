"""The last stage: questions about pictures, with letters drawn at marks as questions draw them."""

from __future__ import annotations

import numpy as np
from batches import Lesson
from told import several_turns
from turns import Shown, draw_turn

from kvfix.data.scenes.paint import (
    SIZE,
    Rendered,
    Scene,
    generator,
    parts_xy,
    render,
    sample_scene,
)
from kvfix.data.scenes.shapes import HOLES, mark
from kvfix.data.scenes.talk import Turn, caption

CHOICES = 0.6  # share of questions with lettered options
MARKED = 0.6  # share of single pictures with marks
APART = 0.16  # least distance of two marks, of the side
EDGE = 0.06  # least distance of a mark from the border


def draw_lesson(split: str, index: int, *, images: int, ease: float, turns: int) -> Lesson:
    """Lesson `index` of a split about one picture or several.

    Args:
        split: Of the scenes.
        index: Which.
        images: One to three; with several there are fewer objects in each, and no marks.
        ease: In [0, 1]: 1 starts with single large objects, 0 is the end.
        turns: Questions.
    """
    rng = generator(split, index, "lesson")
    most = 1 + round((1 - ease) * 3)
    if images > 1:
        scenes = [sample_scene(rng, count=(1, min(most, 2)), radius=(0.14, 0.24)) for _ in "123"]
        scenes = scenes[:images]
        talk = several_turns(rng, scenes, turns=turns, told=False, choices=CHOICES)
        return Lesson([render(s).image for s in scenes], talk)
    size = SIZE if rng.random() < 0.7 else int(rng.integers(120, 201))
    fewest = 2 if ease == 0 and rng.random() < 0.9 else 1
    scene = sample_scene(rng, count=(fewest, most), radius=(0.1, 0.2 + 0.12 * ease))
    picture = render(scene, size)
    shown = draw_marks(rng, scene, picture) if rng.random() < MARKED else Shown(scene)
    drawn = mark(picture.image, [(a, x * size, y * size) for a, x, y in shown.marks])
    talk = [Turn("caption", "Describe the image.", caption(scene))] if rng.random() < 0.4 else []
    while len(talk) < turns:
        turn = draw_turn(rng, shown, told=False, choices=CHOICES)
        if turn is not None:
            talk.append(turn)
    order = rng.permutation(len(talk))
    return Lesson([drawn], [talk[i] for i in order])


def draw_marks(rng: np.random.Generator, scene: Scene, picture: Rendered) -> Shown:
    """Letters at the middle or a part of some objects, and at places of the ground."""
    labels = _labels(rng, int(rng.integers(1, 5)))
    marks: list[tuple[str, float, float]] = []
    on: list[int | None] = []
    order = rng.permutation(len(scene.things)).tolist()
    for label in labels:
        for _ in range(20):
            x, y = rng.uniform(EDGE, 1 - EDGE, 2)
            if order and rng.random() < 0.9:
                x, y = _spot(rng, scene, order[-1])
            if all(np.hypot(x - a, y - b) > APART for _, a, b in marks):
                size = picture.instance_HW.shape[0]
                at = int(picture.instance_HW[int(y * size), int(x * size)])
                if order and at == order[-1] + 1:
                    order.pop()
                marks.append((label, float(x), float(y)))
                on.append(at - 1 if at else None)
                break
    return Shown(scene, tuple(marks), tuple(on))


def _labels(rng: np.random.Generator, n: int) -> list[str]:
    """Which letters: mostly the first ones, as in questions; in any order."""
    if n == 1 and rng.random() < 0.4:
        return ["R"]
    names = [*"ABCD"[:n]] if rng.random() < 0.6 else [*"ABCDR"]
    return rng.permutation(names)[:n].tolist()


def _spot(rng: np.random.Generator, scene: Scene, i: int) -> tuple[float, float]:
    """The middle of an object or one of its parts; never the hole of a ring."""
    thing = scene.things[i]
    if thing.shape not in HOLES and rng.random() < 0.7:
        return thing.x, thing.y
    x, y = (parts_xy(thing) + 0.5)[int(rng.integers(len(parts_xy(thing))))] / SIZE
    return float(np.clip(x, EDGE, 1 - EDGE)), float(np.clip(y, EDGE, 1 - EDGE))
