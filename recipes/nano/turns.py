"""Questions about what a picture shows, and the letters that are drawn at marks.

All that `kvfix.data.scenes.talk` asks is asked here, as lettered choices too. No question is a
perception question of `kvfix.data.scenes.questions` (similarity, correspondence, jigsaw, depth,
style): those stay untrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvfix.data.scenes.paint import Scene, Thing, pick
from kvfix.data.scenes.talk import (
    COLUMNS,
    NUMBERS,
    ROWS,
    VOCABULARY,
    Turn,
    attribute_turn,
    count_turn,
    expression,
    place_turn,
    position_turn,
    presence_turn,
)

REGIONS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
GROUND = "the ground"
ORDINALS = ("the first image", "the second image", "the third image", "the fourth image")
Places = tuple[tuple[str, float, float], ...]


class Shown(NamedTuple):
    """A scene with letters at marks.

    Attributes:
        scene: What is painted.
        marks: Letter, and x and y in [0, 1].
        on: For each mark the index of the object it lies on, or None for the ground.
    """

    scene: Scene
    marks: Places = ()
    on: tuple[int | None, ...] = ()


def lettered(
    rng: np.random.Generator, kind: str, question: str, truth: str, others: Sequence[str]
) -> Turn:
    """A choice of two to four options, the truth at every letter equally often."""
    wrong = [o for o in dict.fromkeys(others) if o != truth]
    rng.shuffle(wrong)
    n = min(int(rng.integers(2, 5)), len(wrong) + 1)
    options, answer = wrong[: n - 1], int(rng.integers(n))
    options.insert(answer, truth)
    lines = "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(options))
    text = f"{question}\nChoose one option:\n{lines}"
    return Turn(f"choice_{kind}", text, f"({chr(65 + answer)})")


def region_of(x: float, y: float) -> str:
    """Which ninth of the picture a point lies in."""
    return f"{ROWS[min(int(y * 3), 2)]} {COLUMNS[min(int(x * 3), 2)]}"


def _other_names(rng: np.random.Generator, shown: Shown, truth: str) -> list[str]:
    """Names of other objects of the scene and invented ones that differ in one word or more."""
    names = [t.name for t in shown.scene.things]
    while len(names) < 6:
        words = truth.split() if truth != GROUND else names[0].split()
        k = int(rng.integers(3))
        words[k] = pick(rng, tuple(VOCABULARY.values())[(0, 2, 1)[k]])
        names.append(" ".join(words))
    return names


def _others(rng: np.random.Generator, shown: Shown, turn: Turn) -> Sequence[str]:
    """What the answer of a turn could be confused with."""
    if turn.kind in VOCABULARY:
        here = [getattr(t, turn.kind) for t in shown.scene.things]
        return [*here, *VOCABULARY[turn.kind]] if rng.random() < 0.3 else VOCABULARY[turn.kind]
    if turn.kind == "position":
        return REGIONS
    if turn.kind == "count":
        return NUMBERS[:5] if turn.answer == NUMBERS[0] else NUMBERS[1:5]
    if turn.kind == "presence":
        return ("yes", "no")
    return _other_names(rng, shown, turn.answer)


def scene_turn(rng: np.random.Generator, shown: Shown, kind: str, *, told: bool) -> Turn | None:
    """A question of `kvfix.data.scenes.talk`.

    Args:
        rng: Draws it.
        shown: What it is about.
        kind: attribute, position, place, count or presence.
        told: The scene is told in words, which do not say what lies left within one third.
    """
    scene = shown.scene
    if kind == "attribute":
        return attribute_turn(scene, rng, choice=False)
    if kind == "position":
        turn = position_turn(scene, rng)
        sided = turn is not None and {"left", "right"} & set(turn.question.split())
        return None if told and sided else turn
    if kind == "place":
        return place_turn(scene, rng)
    return count_turn(scene, rng) if kind == "count" else presence_turn(scene, rng)


def mark_turn(rng: np.random.Generator, shown: Shown) -> Turn | None:
    """A question about a letter: what it is drawn on, or which letter is drawn somewhere."""
    k = int(rng.integers(len(shown.marks)))
    letter, x, y = shown.marks[k]
    at = shown.on[k]
    thing = None if at is None else shown.scene.things[at]
    what = rng.random()
    if what < 0.35:
        name = GROUND if thing is None else thing.name
        return Turn("at_letter", f"What is at letter {letter}?", name)
    if what < 0.5 and thing is not None:
        asked = pick(rng, tuple(VOCABULARY))
        return Turn(asked, f"What {asked} is at letter {letter}?", getattr(thing, asked))
    if what < 0.7 and thing is not None and sum(o == at for o in shown.on) == 1:
        phrase = _told_phrase(rng, shown.scene, thing)
        if phrase is not None:
            return Turn("letter", f"Which letter is on {phrase}?", letter)
    here = region_of(x, y)
    if what < 0.88:
        if sum(region_of(a, b) == here for _, a, b in shown.marks) == 1:
            return Turn("letter", f"Which letter is at the {here}?", letter)
        return None
    return Turn("position", f"Where is letter {letter}?", here)


def _told_phrase(rng: np.random.Generator, scene: Scene, thing: Thing) -> str | None:
    """An expression by attributes alone."""
    phrase = expression(scene, thing, rng)
    return None if phrase and {"left", "right"} & set(phrase.split()) else phrase


def chosen(rng: np.random.Generator, shown: Shown, turn: Turn) -> Turn:
    """The same question with lettered options."""
    if turn.kind == "letter":
        drawn = [letter for letter, _, _ in shown.marks]
        if (
            len(drawn) > 1 and rng.random() < 0.5
        ):  # options as the questions of a benchmark have them: A is A
            options = sorted(drawn)
            lines = "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(options))
            text = f"{turn.question}\nChoose one option:\n{lines}"
            return Turn("choice_letter", text, f"({chr(65 + options.index(turn.answer))})")
        return lettered(rng, "letter", turn.question, turn.answer, [*drawn, *"ABCD"])
    return lettered(rng, turn.kind, turn.question, turn.answer, _others(rng, shown, turn))


def draw_turn(rng: np.random.Generator, shown: Shown, *, told: bool, choices: float) -> Turn | None:
    """One question; None where the drawn kind does not fit the scene.

    Args:
        rng: Draws it.
        shown: What it is about.
        told: See `scene_turn`.
        choices: Share of questions with lettered options.
    """
    if shown.marks and rng.random() < 0.5:
        turn = mark_turn(rng, shown)
    else:
        kinds = ("attribute", "position", "place", "count", "presence")
        kind = str(rng.choice(kinds, p=(0.4, 0.15, 0.2, 0.15, 0.1)))
        turn = scene_turn(rng, shown, kind, told=told)
    if turn is not None and rng.random() < choices:
        return chosen(rng, shown, turn)
    return turn


def which_image_turn(rng: np.random.Generator, scenes: Sequence[Scene]) -> Turn | None:
    """Which of several images shows a coloured shape; asked as a choice or freely."""
    k = int(rng.integers(len(scenes)))
    thing = scenes[k].things[int(rng.integers(len(scenes[k].things)))]
    fits = [
        any(t.colour == thing.colour and t.shape == thing.shape for t in s.things) for s in scenes
    ]
    if sum(fits) != 1:
        return None
    question = f"Which image shows the {thing.colour} {thing.shape}?"
    if rng.random() < 0.3:
        return Turn("which_image", question, ORDINALS[k])
    return lettered(rng, "image", question, ORDINALS[k], ORDINALS[: len(scenes)])
