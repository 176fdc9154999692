"""Looking one of several objects up: one kind of question until it is found, then the next.

With all kinds mixed, one of four objects was never found; one kind alone is found within some
hundred batches, and kept by asking it again now and then (README).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from batches import Lesson
from told import draw_letters, facts
from turns import Shown, chosen, mark_turn, scene_turn

from kvfix.data.scenes.paint import generator, sample_scene
from kvfix.data.scenes.talk import VOCABULARY, Turn

MARKED = ("mark_attribute", "at_letter", "letter", "mark_position")
NEWEST = 0.65  # share of batches that ask the newest kind while it is learned
CHOICES = 0.5  # share of questions with lettered options, once all kinds are known


class Lookup(NamedTuple):
    """One kind of lookup.

    Attributes:
        raster: The facts are the words of cells, not sentences.
        asked: attribute, position, place, presence, count; or of a letter: `MARKED`.
    """

    raster: bool
    asked: str


ASKED = ("attribute", *MARKED[:2], "place", "letter", "position", MARKED[3], "presence", "count")
LOOKUPS = tuple(Lookup(raster, asked) for asked in ASKED for raster in (True, False))


def lookup_of(step: int, each: int) -> tuple[Lookup, float]:
    """What the batch of a step asks, and its share of lettered options.

    Args:
        step: Of the stage.
        each: Steps after which the next kind begins; after the last one, all are mixed.
    """
    rng = Random(step)
    newest = step // each
    if newest >= len(LOOKUPS):
        return rng.choice(LOOKUPS), CHOICES
    if newest == 0 or rng.random() < NEWEST:
        return LOOKUPS[newest], 0.0
    return rng.choice(LOOKUPS[:newest]), 0.0


def draw_lookup(split: str, index: int, lookup: Lookup, *, choices: float) -> Lesson:
    """Lesson `index` of a split: facts about two to four objects and one question."""
    rng = generator(split, index, f"lookup-{lookup.asked}-{lookup.raster:d}")
    turn = None
    while turn is None:
        scene = sample_scene(rng, count=(2, 4))
        shown = Shown(scene, *draw_letters(rng, scene))
        if lookup.asked in MARKED:
            turn = _if_asked(mark_turn(rng, shown), lookup.asked)
        else:
            turn = scene_turn(rng, shown, lookup.asked, told=not lookup.raster)
    if rng.random() < choices:
        turn = chosen(rng, shown, turn)
    if lookup.raster:
        return Lesson([], [turn], raster=(shown,))
    return Lesson([], [turn], facts(rng, shown))


def _if_asked(turn: Turn | None, asked: str) -> Turn | None:
    if turn is None:
        return None
    kind = "attribute" if turn.kind in VOCABULARY else turn.kind
    return turn if kind == asked.removeprefix("mark_") else None
