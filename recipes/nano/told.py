"""Questions about scenes told in words: the language model learns to look things up, and to find
the letter of the option that is right, before it sees a picture.
"""

from __future__ import annotations

import numpy as np
from batches import Lesson
from turns import GROUND, ORDINALS, REGIONS, Shown, draw_turn, region_of, which_image_turn

from kvfix.data.scenes.paint import Scene, generator, sample_scene
from kvfix.data.scenes.talk import Turn, caption, region

CHOICES = 0.6  # share of questions with lettered options
CAPTIONED = 0.1  # share of lessons that ask for a caption
RETOLD = 0.5  # share that ask to tell everything again: many words to look up at once
SEVERAL = 0.2  # share of lessons about two or three images


def draw_told(
    split: str,
    index: int,
    *,
    raster: bool,
    turns: int,
    easy: bool = False,
    retold: float = 0.0,
) -> Lesson:
    """Lesson `index`: facts, then questions.

    Args:
        split: Of the scenes.
        index: Which.
        raster: Tell the facts by the words of cells, as a picture will, not in sentences.
        turns: Questions.
        easy: One scene of one or two objects, and no options.
        retold: Share of lessons that ask to tell everything again.
    """
    rng = generator(split, index, "raster" if raster else "told")
    choices = 0.0 if easy else CHOICES
    if not easy and rng.random() < SEVERAL:
        return _several(rng, turns, raster=raster, choices=choices)
    scene = sample_scene(rng, count=(1, 2) if easy else (1, 4))
    shown = Shown(scene, *draw_letters(rng, scene)) if rng.random() < 0.7 else Shown(scene)
    talk: list[Turn] = []
    if rng.random() < CAPTIONED:
        talk.append(Turn("caption", "Describe the image.", caption(scene)))
    if rng.random() < retold:
        talk.append(retold_turn(rng, shown))
    while len(talk) < turns:
        turn = draw_turn(rng, shown, told=not raster, choices=choices)
        if turn is not None:
            talk.append(turn)
    if raster:
        return Lesson([], talk, raster=(shown,))
    return Lesson([], talk, facts(rng, shown))


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


def draw_letters(
    rng: np.random.Generator, scene: Scene
) -> tuple[tuple[tuple[str, float, float], ...], tuple[int | None, ...]]:
    """Letters on some objects and at some free places."""
    free = [r for r in REGIONS if all(region(t) != r for t in scene.things)]
    spots: list[int | None] = [i for i in range(len(scene.things)) if rng.random() < 0.8]
    if not spots or rng.random() < 0.3:
        spots.append(None)
    rng.shuffle(spots)
    names = "ABCD" if rng.random() < 0.8 else "ABCDR"
    letters = [*"ABCDR"[: len(spots)]] if rng.random() < 0.5 else rng.permutation([*names]).tolist()
    marks = []
    for letter, i in zip(letters, spots, strict=False):
        if i is None:
            k = REGIONS.index(str(rng.choice(free)))
            marks.append((letter, (k % 3 + 0.5) / 3, (k // 3 + 0.5) / 3))
        else:
            marks.append((letter, scene.things[i].x, scene.things[i].y))
    return tuple(marks), tuple(spots[: len(marks)])


def facts(rng: np.random.Generator, shown: Shown) -> str:
    """Everything shown, in any order; words of an object in the usual order or in any."""
    loose = rng.random() < 0.3
    parts = []
    for i, thing in enumerate(shown.scene.things):
        letters = [m[0] for m, on in zip(shown.marks, shown.on, strict=True) if on == i]
        words = [*letters, *thing.name.split()]
        if loose:
            words = [*words, *region(thing).split()]
            rng.shuffle(words)
            parts.append(" ".join(words))
        else:
            parts.append(f"{' '.join(words)} at the {region(thing)}")
    for (letter, x, y), on in zip(shown.marks, shown.on, strict=True):
        if on is None:
            parts.append(f"{letter} at the {region_of(x, y)}")
    rng.shuffle(parts)
    return "The image: " + ", ".join(parts) + "."


def _several(rng: np.random.Generator, turns: int, *, raster: bool, choices: float) -> Lesson:
    """Two or three images told one after the other."""
    scenes = [sample_scene(rng, count=(1, 2)) for _ in range(2 if rng.random() < 0.7 else 3)]
    told = [
        f"{name[0].upper()}{name[1:]}: {facts(rng, Shown(s)).removeprefix('The image: ')}"
        for name, s in zip(ORDINALS, scenes, strict=False)
    ]
    talk = several_turns(rng, scenes, turns=turns, told=not raster, choices=choices)
    if raster:
        return Lesson([], talk, raster=tuple(Shown(s) for s in scenes))
    return Lesson([], talk, " ".join(told))


def several_turns(
    rng: np.random.Generator,
    scenes: list[Scene],
    *,
    turns: int,
    told: bool,
    choices: float = CHOICES,
) -> list[Turn]:
    """Questions about one of several images, and about which of them shows something."""
    talk: list[Turn] = []
    while len(talk) < turns:
        k = int(rng.integers(len(scenes)))
        turn: Turn | None
        if rng.random() < 0.3:
            turn = which_image_turn(rng, scenes)
        elif rng.random() < 0.2:
            words = ORDINALS[k].split()[1]
            turn = Turn("pair_caption", f"Describe the {words} image.", caption(scenes[k]))
        else:
            turn = draw_turn(rng, Shown(scenes[k]), told=told, choices=choices)
            if turn is not None:
                question = f"In {ORDINALS[k]}: {turn.question}"
                turn = Turn(f"pair_{turn.kind}", question, turn.answer)
        if turn is not None:
            talk.append(turn)
    return talk
