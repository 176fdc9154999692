"""Looking things up: drills, scenes told again and single questions in one mix, easy ones first.

Attention that starts by likeness (`initial.py`) finds all of them together from scratch (README).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np
from batches import Lesson
from told import draw_letters, facts
from turns import GROUND, Shown, chosen, mark_turn, region_of, scene_turn

from kvfix.data.scenes.paint import generator, sample_scene
from kvfix.data.scenes.talk import VOCABULARY, Turn, region

MARKED = ("mark_attribute", "at_letter", "letter", "mark_position")
SEVERAL = (2, 4)  # objects of a scene that one is looked up in
EASY, ANY = (1, 2), (1, 4)  # of scenes at the start, and of those told again later
DRILLED, RETOLD = 0.25, 0.49  # shares of batches; the others ask single questions
CHOICES = 0.4  # share of single questions with lettered options, but for the start


class Lookup(NamedTuple):
    """One kind of lookup.

    Attributes:
        raster: The facts are the words of cells, not sentences.
        asked: attribute, position, place, presence, count; of a letter: `MARKED`; or retold.
    """

    raster: bool
    asked: str


ASKED = ("attribute", *MARKED[:2], "place", "letter", "position", MARKED[3], "presence", "count")
LOOKUPS = tuple(Lookup(raster, asked) for asked in ASKED for raster in (True, False))


class Asked(NamedTuple):
    """What the batch of a step asks.

    Attributes:
        lookup: Which kind.
        objects: Fewest and most of a scene.
        choices: Share of questions with lettered options.
    """

    lookup: Lookup
    objects: tuple[int, int] = SEVERAL
    choices: float = 0.0


def asked_at(step: int, easy: int) -> Asked | None:
    """What the batch of a step asks; None: a drill.

    Args:
        step: Of the stage.
        easy: Steps at the start that are easy: scenes of one or two objects, no options.
    """
    rng, start = Random(step), step < easy
    drawn = rng.random()
    if drawn < DRILLED:
        return None
    if drawn < DRILLED + RETOLD:
        return Asked(Lookup(rng.random() < 0.5, "retold"), EASY if start else ANY)
    return Asked(rng.choice(LOOKUPS), EASY if start else SEVERAL, 0.0 if start else CHOICES)


def draw_lookup(split: str, index: int, asked: Asked) -> Lesson:
    """Lesson `index` of a split: facts about a scene and one question."""
    (raster, kind), objects, choices = asked
    rng = generator(split, index, f"lookup-{kind}-{raster:d}")
    turn = None
    while turn is None:
        scene = sample_scene(rng, count=objects)
        shown = Shown(scene, *draw_letters(rng, scene))
        if kind == "retold":
            turn = retold_turn(rng, shown)
        elif kind in MARKED:
            turn = _if_asked(mark_turn(rng, shown), kind)
        else:
            turn = scene_turn(rng, shown, kind, told=not raster)
    if rng.random() < choices:
        turn = chosen(rng, shown, turn)
    return Lesson([], [turn], raster=(shown,)) if raster else Lesson([], [turn], facts(rng, shown))


def retold_turn(rng: np.random.Generator, shown: Shown) -> Turn:
    """Everything shown once more: objects and letters in any order, their words in any order."""
    told = []
    for i, thing in enumerate(shown.scene.things):
        letters = [m[0] for m, on in zip(shown.marks, shown.on, strict=True) if on == i]
        told.append([*letters, *thing.name.split(), *region(thing).split()])
    for (letter, x, y), on in zip(shown.marks, shown.on, strict=True):
        if on is None:
            told.append([letter, *GROUND.split()[1:], *region_of(x, y).split()])
    orders = [rng.permutation(words).tolist() for words in told]
    rng.shuffle(orders)
    return Turn(
        "retold", "Tell it again.", " " + ", ".join(" ".join(words) for words in orders) + "."
    )


def _if_asked(turn: Turn | None, asked: str) -> Turn | None:
    if turn is None:
        return None
    kind = "attribute" if turn.kind in VOCABULARY else turn.kind
    return turn if kind == asked.removeprefix("mark_") else None
