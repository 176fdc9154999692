"""Beside all facts: which letter has an option, and what stands at a letter."""

from __future__ import annotations

import numpy as np
from batches import Lesson
from gallery import LETTERS
from turns import REGIONS

from kvfix.data.scenes.paint import generator
from kvfix.data.scenes.talk import NUMBERS, VOCABULARY, Turn

ATTRIBUTES = tuple(VOCABULARY.values())
EIGHT = "ABCDEFGH"
LETTER = 0.7  # share of drills that ask for the letter: the harder way round


def draw_drill(split: str, index: int, *, ease: float) -> Lesson:
    """Lesson `index` of a split; `ease` as in `drill_turn`."""
    return Lesson([], [drill_turn(generator(split, index, "drill"), ease=ease)])


def draw_recall(split: str, index: int) -> Lesson:
    """Lesson `index`: four to eight options, then each option once more, and its letter."""
    rng = generator(split, index, "recall")
    options = _lettered(rng)
    lines = "\n".join(f"({letter}) {option}" for letter, option in options)
    told = [options[i] for i in rng.permutation(len(options))]
    answer = ",".join(f" {option}({letter})" for letter, option in told)
    return Lesson([], [Turn("recall", f"What is what?\n{lines}", answer)])


def draw_listed(split: str, index: int) -> Lesson:
    """Lesson `index`: four to eight options, and for each the question which letter it has.

    A drill teaches one letter in forty tokens, this lesson one in twenty: with too few letters a
    batch, a model goes on guessing them.
    """
    options = _lettered(generator(split, index, "listed"))
    lines = "\n".join(f"({letter}) {option}" for letter, option in options)
    turns = [Turn("listed", f"Which option is {o}?", f"({letter})") for letter, o in options]
    return Lesson([], turns, lines)


def _lettered(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Options and their letters, in the usual order or in any."""
    options: list[str] = []
    n = int(rng.integers(4, len(EIGHT) + 1))
    while len(options) < n:
        option = _content(rng)
        if option not in options:
            options.append(option)
    letters = rng.permutation([*EIGHT]).tolist() if rng.random() < 0.5 else [*EIGHT]
    return [*zip(letters, options, strict=False)]


def _content(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.6:
        return str(rng.choice([w for words in ATTRIBUTES for w in words]))
    if kind < 0.7:
        return str(rng.choice(REGIONS))
    return names(rng)[0]


def drill_turn(rng: np.random.Generator, *, ease: float = 0.0) -> Turn:
    """A question that needs no picture; at `ease` 1 all options are single words of attributes."""
    options = _contents(rng, ease)[: int(rng.integers(2, 5))]
    k = int(rng.integers(len(options)))
    lines = "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(options))
    if rng.random() < LETTER:
        return Turn("drill_letter", f"Which option is {options[k]}?\n{lines}", f"({chr(65 + k)})")
    return Turn("drill_content", f"What is option {chr(65 + k)}?\n{lines}", options[k])


def _contents(rng: np.random.Generator, ease: float) -> list[str]:
    """Contents of one kind, in any order."""
    if rng.random() < 0.5 + 0.5 * ease:
        words: tuple[str, ...] = ATTRIBUTES[int(rng.integers(len(ATTRIBUTES)))]
    elif rng.random() < 0.4:
        return names(rng)
    else:
        words = (REGIONS, NUMBERS[:5], LETTERS)[int(rng.integers(3))]
    return rng.permutation(words).tolist()


def names(rng: np.random.Generator) -> list[str]:
    """Four names of objects, each other than the first in one to three words."""
    colours, shapes, textures = ATTRIBUTES
    parts = (colours, textures, shapes)
    first = [str(rng.choice(words)) for words in parts]
    found = [" ".join(first)]
    while len(found) < 4:
        changed = rng.random(3) < 0.5
        words = [
            str(rng.choice(p)) if c else w for p, c, w in zip(parts, changed, first, strict=True)
        ]
        name = " ".join(words)
        if name not in found:
            found.append(name)
    return rng.permutation(found).tolist()
