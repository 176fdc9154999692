"""Looking one of several objects up: one kind of question until it is found, then the next.

With all kinds mixed, one of several objects is not found; one kind alone is, and it is kept by
asking it again now and then (README).
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from random import Random
from typing import NamedTuple

import numpy as np
from batches import Lesson
from told import draw_letters, facts
from turns import GROUND, Shown, chosen, mark_turn, region_of, scene_turn

from kvfix.data.scenes.paint import generator, sample_scene
from kvfix.data.scenes.talk import VOCABULARY, Turn, region

MARKED = ("mark_attribute", "at_letter", "letter", "mark_position")
NEWEST = 0.65  # share of batches that ask the newest kind while it is learned
ONE, SEVERAL = (1, 1), (2, 4)  # objects of a scene
CHOICES = 0.5  # share of questions with lettered options, once all kinds are mixed
RETOLD = 0.45  # share of batches that tell the scene again, then


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


# How long a turn lasts, in turns of usual length, and what is asked in it. The first two have one
# object, so that an answer is said at all; words of cells take longer to be read than sentences.
# With attributes alone before all is mixed, what is at a letter was not found any more.
TURNS = (
    (0.4, Asked(Lookup(False, "attribute"), ONE)),
    (1.2, Asked(Lookup(True, "attribute"), ONE)),
    *((1.5, Asked(x)) for x in LOOKUPS[:2]),
    *((1.0, Asked(x)) for x in LOOKUPS[2:6]),
)
ENDS = tuple(accumulate(length for length, _ in TURNS))


def asked_at(step: int, each: int) -> Asked:
    """What the batch of a step asks.

    Args:
        step: Of the stage.
        each: Steps of a turn of usual length; after the last, all kinds are mixed.
    """
    rng, turn = Random(step), bisect(ENDS, step / each)
    if turn == len(TURNS):
        if rng.random() < RETOLD:
            return Asked(Lookup(rng.random() < 0.5, "retold"))
        return Asked(rng.choice(LOOKUPS), choices=CHOICES)
    if turn == 0 or rng.random() < NEWEST:
        return TURNS[turn][1]
    return rng.choice(TURNS[:turn])[1]


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
