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


def draw_drill(split: str, index: int) -> Lesson:
    """Lesson `index` of a split: two to four options, and the letter or the content of one."""
    rng = generator(split, index, "drill")
    options = _contents(rng)[: int(rng.integers(2, 5))]
    k = int(rng.integers(len(options)))
    lines = _lines([*zip(EIGHT, options, strict=False)])
    if rng.random() < LETTER:
        asked = Turn("drill_letter", f"Which option is {options[k]}?\n{lines}", f"({EIGHT[k]})")
    else:
        asked = Turn("drill_content", f"What is option {EIGHT[k]}?\n{lines}", options[k])
    return Lesson([], [asked])


def draw_recall(split: str, index: int) -> Lesson:
    """Lesson `index`: four to eight options, then each option once more, and its letter."""
    rng = generator(split, index, "recall")
    options = _lettered(rng)
    told = [options[i] for i in rng.permutation(len(options))]
    answer = ",".join(f" {option}({letter})" for letter, option in told)
    return Lesson([], [Turn("recall", f"What is what?\n{_lines(options)}", answer)])


def draw_listed(split: str, index: int) -> Lesson:
    """Lesson `index`: four to eight options, and for each the question which letter it has.

    A drill teaches one letter, this lesson a letter an option: with too few a batch, a model goes
    on guessing them.
    """
    options = _lettered(generator(split, index, "listed"))
    turns = [Turn("listed", f"Which option is {o}?", f"({letter})") for letter, o in options]
    return Lesson([], turns, _lines(options))


def _lines(options: list[tuple[str, str]]) -> str:
    """As questions list them."""
    return "\n".join(f"({letter}) {option}" for letter, option in options)


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


def _contents(rng: np.random.Generator) -> list[str]:
    """Contents of one kind, in any order."""
    if rng.random() < 0.5:
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
