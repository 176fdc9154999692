"""Beside all facts: which letter has an option, and what stands at a letter."""

from __future__ import annotations

import numpy as np
from batches import Lesson
from gallery import LETTERS
from turns import REGIONS

from kvfix.data.scenes.paint import generator
from kvfix.data.scenes.talk import NUMBERS, VOCABULARY, Turn

ATTRIBUTES = tuple(VOCABULARY.values())
ALL = 0.4  # share of drills that ask for all letters, each after its option: many answers at once
LETTER = 0.7  # share of the others that ask for a letter: the harder way round


def draw_drill(split: str, index: int, *, ease: float) -> Lesson:
    """Lesson `index` of a split; `ease` as in `drill_turn`."""
    return Lesson([], [drill_turn(generator(split, index, "drill"), ease=ease)])


def drill_turn(rng: np.random.Generator, *, ease: float = 0.0) -> Turn:
    """A question that needs no picture; at `ease` 1 all options are single words of attributes."""
    options = _contents(rng, ease)[: int(rng.integers(2, 5))]
    k = int(rng.integers(len(options)))
    lines = "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(options))
    if rng.random() < ALL:
        order = rng.permutation(len(options)).tolist()
        letters = ",".join(f" {options[i]}({chr(65 + i)})" for i in order)
        return Turn("drill_all", f"What is what?\n{lines}", letters)
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
