"""What can be said about a scene: captions, expressions, and questions about attributes.

These are the sentences the nano checkpoints learn from. Multiple choice appears here for ATTRIBUTES
only (colour, shape, texture), so that a model masters the answer format; the perception questions
of `kvfix.data.scenes.questions` stay untrained.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kvfix.data.scenes.paint import Scene, Thing, pick
from kvfix.data.scenes.shapes import COLOURS, SHAPES, TEXTURES

VOCABULARY = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")


class Turn(NamedTuple):
    """One exchange; `kind` groups the held-out scores."""

    kind: str
    question: str
    answer: str


def region(thing: Thing) -> str:
    """Which ninth of the picture an object's centre lies in: `top left`."""
    return f"{ROWS[min(int(thing.y * 3), 2)]} {COLUMNS[min(int(thing.x * 3), 2)]}"


def caption(scene: Scene) -> str:
    """Every object from left to right with its place."""
    things = sorted(scene.things, key=lambda t: t.x)
    return ", ".join(f"{t.name} at the {region(t)}" for t in things) + "."


def expression(scene: Scene, thing: Thing, rng: np.random.Generator) -> str | None:
    """A phrase that fits this object and no other of the scene; None if none is found."""
    others = [t for t in scene.things if t is not thing]
    same = [t for t in others if t.shape == thing.shape]
    candidates = []
    if not same:
        candidates.append(f"the {thing.shape}")
    if all(t.colour != thing.colour for t in same):
        candidates.append(f"the {thing.colour} {thing.shape}")
    if all(t.texture != thing.texture for t in same):
        candidates.append(f"the {thing.texture} {thing.shape}")
    if same and all(thing.x < t.x - 0.1 for t in same):
        candidates.append(f"the left {thing.shape}")
    if same and all(thing.x > t.x + 0.1 for t in same):
        candidates.append(f"the right {thing.shape}")
    return pick(rng, candidates) if candidates else None


def _choices(rng: np.random.Generator, truth: str, options: tuple[str, ...]) -> tuple[str, int]:
    """Lettered options around the truth, and the index of the truth."""
    n = int(rng.integers(2, 5))
    wrong = [o for o in options if o != truth]
    rng.shuffle(wrong)
    answer = int(rng.integers(n))
    shown = wrong[: n - 1]
    shown.insert(answer, truth)
    lines = "\n".join(f"({chr(65 + i)}) {o}" for i, o in enumerate(shown))
    return f"\nChoose one option:\n{lines}", answer


def attribute_turn(scene: Scene, rng: np.random.Generator, *, choice: bool) -> Turn | None:
    """Ask one attribute of an object named by another; with lettered options if `choice`."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    asked, by = [("colour", "shape"), ("texture", "shape"), ("shape", "colour")][
        int(rng.integers(3))
    ]
    if sum(getattr(t, by) == getattr(thing, by) for t in scene.things) != 1:
        return None
    truth = getattr(thing, asked)
    named = f"{thing.shape}" if by == "shape" else f"{thing.colour} thing"
    question = f"What {asked} is the {named}?"
    if not choice:
        return Turn(asked, question, f"{truth}")
    options, answer = _choices(rng, truth, VOCABULARY[asked])
    return Turn("choice", question + options, f"({chr(65 + answer)})")


def position_turn(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Ask where a uniquely named object is."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    phrase = expression(scene, thing, rng)
    return Turn("position", f"Where is {phrase}?", region(thing)) if phrase else None


def count_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """Ask how many objects, or how many of one shape."""
    if rng.random() < 0.4:
        return Turn("count", "How many things are there?", NUMBERS[len(scene.things)])
    present = sorted({t.shape for t in scene.things})  # sorted: sets have no fixed order
    shape = pick(rng, present if rng.random() < 0.75 else SHAPES)
    n = sum(t.shape == shape for t in scene.things)
    return Turn("count", f"How many of shape {shape}?", NUMBERS[n])


def presence_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """Ask whether a coloured shape is there; half of the answers are yes."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    colour, shape = thing.colour, thing.shape
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            colour = pick(rng, tuple(COLOURS), but=[t.colour for t in scene.things])
        else:
            shape = pick(rng, SHAPES, but=[t.shape for t in scene.things])
    found = any(t.colour == colour and t.shape == shape for t in scene.things)
    return Turn("presence", f"Is there a {colour} {shape}?", "yes" if found else "no")


def place_turn(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Ask what is at a place that holds exactly one object."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if sum(region(t) == region(thing) for t in scene.things) != 1:
        return None
    return Turn("place", f"What is at the {region(thing)}?", thing.name)


def conversation(scene: Scene, rng: np.random.Generator, *, turns: int) -> list[Turn]:
    """A caption somewhere among `turns` questions about one scene."""
    talk = [Turn("caption", "Describe the image.", caption(scene))]
    while len(talk) < turns:
        kind = rng.random()
        if kind < 0.30:
            turn = attribute_turn(scene, rng, choice=False)
        elif kind < 0.52:
            turn = attribute_turn(scene, rng, choice=True)
        elif kind < 0.66:
            turn = position_turn(scene, rng)
        elif kind < 0.78:
            turn = place_turn(scene, rng)
        elif kind < 0.90:
            turn = count_turn(scene, rng)
        else:
            turn = presence_turn(scene, rng)
        if turn is not None:
            talk.append(turn)
    order = rng.permutation(len(talk))
    return [talk[i] for i in order]
