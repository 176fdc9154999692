"""What is said of a scene is true of it, and multiple choice asks attributes only."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kvfix.data.scenes.paint import Scene, Thing, generator, sample_scene
from kvfix.data.scenes.shapes import COLOURS, SHAPES, TEXTURES
from kvfix.data.scenes.talk import (
    NUMBERS,
    VOCABULARY,
    Turn,
    attribute_turn,
    caption,
    conversation,
    count_turn,
    expression,
    place_turn,
    position_turn,
    presence_turn,
    region,
)

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def _scenes(n: int, stream: str) -> list[tuple[Scene, np.random.Generator]]:
    made = []
    for i in range(n):
        rng = generator("test", i, stream)
        made.append((sample_scene(rng, count=(1, 4)), rng))
    return made


def _at(thing: Thing, words: str) -> bool:
    """Whether the object's centre lies in the named ninth of the picture."""
    row, column = words.split()
    low_y, low_x = ROWS.index(row) / 3, COLUMNS.index(column) / 3
    return low_y <= thing.y <= low_y + 1 / 3 and low_x <= thing.x <= low_x + 1 / 3


def _true(turn: Turn, scene: Scene) -> bool:
    """Whether an answer holds, read from its words alone; unknown sentences are an error."""
    asked, answer = turn.question.split("\n")[0], turn.answer
    if turn.kind == "choice":
        options = dict(re.findall(r"\((\w)\) (\w+)", turn.question))
        answer = options[answer.strip("()")]
    if match := re.fullmatch(r"What (\w+) is the (\w+)( thing)?\?", asked):
        wanted, name = match[1], match[2]
        by = "colour" if match[3] else "shape"
        named = [t for t in scene.things if getattr(t, by) == name]
        return len(named) == 1 and getattr(named[0], wanted) == answer
    if match := re.fullmatch(r"Where is the (?:(\w+) )?(\w+)\?", asked):
        found = [t for t in scene.things if t.shape == match[2]]
        if match[1] in ("left", "right"):
            found.sort(key=lambda t: t.x, reverse=match[1] == "right")
            return len(found) > 1 and _at(found[0], answer)
        if match[1]:
            found = [t for t in found if match[1] in (t.colour, t.texture)]
        return len(found) == 1 and _at(found[0], answer)
    if match := re.fullmatch(r"What is at the (\w+ \w+)\?", asked):
        found = [t for t in scene.things if region(t) == match[1]]
        return len(found) == 1 and found[0].name == answer
    if asked == "How many things are there?":
        return NUMBERS.index(answer) == len(scene.things)
    if match := re.fullmatch(r"How many of shape (\w+)\?", asked):
        return NUMBERS.index(answer) == sum(t.shape == match[1] for t in scene.things)
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", asked):
        found = [t for t in scene.things if (t.colour, t.shape) == (match[1], match[2])]
        return answer == ("yes" if found else "no")
    if asked == "Describe the image.":
        said = [s.split(" at the ") for s in answer.rstrip(".").split(", ")]
        left_to_right = sorted(scene.things, key=lambda t: t.x)
        return [name for name, _ in said] == [t.name for t in left_to_right] and all(
            _at(t, place) for t, (_, place) in zip(left_to_right, said, strict=True)
        )
    raise AssertionError(f"no reading for {turn}")


def test_every_turn_of_a_conversation_is_true() -> None:
    kinds: Counter[str] = Counter()
    for scene, rng in _scenes(200, "talk"):
        talk = conversation(scene, rng, turns=8)
        assert len(talk) == 8 and [t.kind for t in talk].count("caption") == 1
        for turn in talk:
            assert _true(turn, scene), (turn, scene)
            kinds[turn.kind] += 1
    kinds_asked = {"caption", "choice", "position", "place", "count", "presence"}
    assert set(kinds) == kinds_asked | {"colour", "shape", "texture"}


def test_the_reading_above_sees_a_lie() -> None:
    caught = said = 0
    for scene, rng in _scenes(60, "lie"):
        things = scene.things
        turned = tuple(replace(t, x=1 - t.x, y=1 - t.y) for t in things)
        other = replace(scene, things=(*turned, replace(things[0], shape="moon", colour="grey")))
        for turn in conversation(scene, rng, turns=8):
            if turn.kind in ("caption", "position", "place"):
                said += 1
                caught += not _true(turn, other)
    assert caught > 0.8 * said > 0


def test_a_caption_in_words() -> None:
    star = Thing("star", "red", "plain", 0.7, 0.2, 0.1, 0.0)
    ring = Thing("ring", "blue", "dotted", 0.2, 0.9, 0.2, 0.0)
    scene = Scene((star, ring), "even", (90.0, 90.0, 90.0), "flat", 0)
    assert caption(scene) == "blue dotted ring at the bottom left, red plain star at the top right."
    assert region(replace(star, x=1.0, y=1.0)) == "bottom right"


def test_multiple_choice_asks_attributes_only_with_the_truth_once() -> None:
    letters: Counter[tuple[int, str]] = Counter()
    for scene, rng in _scenes(900, "choice"):
        turn = attribute_turn(scene, rng, choice=True)
        if turn is None:
            continue
        head, ask, *lines = turn.question.split("\n")
        wanted = head.split()[1]
        assert wanted in VOCABULARY and ask == "Choose one option:"
        options = [line.split(") ")[1] for line in lines]
        assert 2 <= len(options) <= 4 and len(set(options)) == len(options)
        assert set(options) <= set(VOCABULARY[wanted])
        assert [line[:3] for line in lines] == [f"({c})" for c in "ABCD"[: len(lines)]]
        assert _true(turn, scene)
        letters[len(options), turn.answer] += 1
    for n in (2, 3, 4):
        counts = [letters[n, f"({c})"] for c in "ABCD"[:n]]
        total = sum(counts)
        spread = 3.5 * np.sqrt(total / n * (1 - 1 / n))
        assert all(abs(k - total / n) < spread for k in counts), letters


def test_presence_is_half_yes() -> None:
    said = Counter(presence_turn(scene, rng).answer for scene, rng in _scenes(600, "presence"))
    assert abs(said["yes"] - 300) < 3.5 * np.sqrt(150) and said.total() == 600


def test_nothing_is_asked_that_names_no_or_several_objects() -> None:
    star = Thing("star", "red", "plain", 0.30, 0.5, 0.1, 0.0)
    twin = replace(star, x=0.36)  # no word tells them apart, and both are in one column
    scene = Scene((star, twin), "even", (90.0, 90.0, 90.0), "flat", 0)
    rng = np.random.default_rng(0)
    assert expression(scene, star, rng) is None
    for _ in range(20):
        assert attribute_turn(scene, rng, choice=False) is None
        assert position_turn(scene, rng) is None
    near = Scene((star, replace(star, x=0.31, shape="ring")), "even", scene.tone, "flat", 0)
    assert all(place_turn(near, rng) is None for _ in range(20))


def test_counting_speaks_of_absent_shapes_too() -> None:
    said = [count_turn(scene, rng) for scene, rng in _scenes(200, "count")]
    assert {t.answer for t in said} >= {"zero", "one", "two", "three"}


@pytest.mark.parametrize("words", [COLOURS, SHAPES, TEXTURES])
def test_every_word_is_said(words: tuple[str, ...]) -> None:
    text = " ".join(caption(scene) for scene, _ in _scenes(300, "words"))
    assert all(f" {word}" in f" {text}" for word in words)
