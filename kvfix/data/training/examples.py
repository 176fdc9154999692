"""What a repair learns from, of scenes or data: a conversation about images, and what is known
beside.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvfix.data.groups import grouped
from kvfix.data.pictures.read import Header
from kvfix.data.scenes.paint import SIZE, generator, render, sample_scene
from kvfix.data.scenes.questions import random_warp, scene_question, warp_image, warp_points
from kvfix.data.scenes.shapes import SHAPES
from kvfix.data.scenes.talk import conversation
from kvfix.data.scenes.units import MAKERS
from kvfix.data.training.conversation import PLACEHOLDER, Conversation
from kvfix.data.training.dataset import Conversations
from kvfix.data.training.mix import SceneMix
from kvfix.data.units import Pair, Question, Sentence

NO_OUTPUT = -1
MOST_SHOWN = 10  # lines on what was left out; training.json has all
_ANSWER = re.compile(r"\(([A-E])\)")
_OPTION = re.compile(r"^\(([A-E])\) (.+)$", re.MULTILINE)


class Turn(NamedTuple):
    """What the user says, images and texts in their order, and what the assistant should answer."""

    user: tuple[str | None, ...]  # None stands for the next image
    answer: str  # empty if there is nothing to learn
    learned: bool = True  # an answer that is not learned is read, as what was said before


class Mask(NamedTuple):
    """A mask on an image of an example."""

    image: int
    mask_HW: np.ndarray  # uint8, 0 or 1, 255 void
    category: int = 0  # output of a mask head that learns it; NO_OUTPUT: none does
    named: bool = False  # the first user's text ends with its name


class MatchedPoints(NamedTuple):
    """Points of two images that show the same, (x, y) in pixels, centres at integers."""

    image_a: int
    image_b: int
    a_K2: np.ndarray
    b_K2: np.ndarray


@dataclass(frozen=True)
class Example:
    """One training sample."""

    id: str
    images: tuple[Image.Image, ...]  # RGB, possibly none
    turns: tuple[Turn, ...]  # one or more; all together have a placeholder for each image
    masks: tuple[Mask, ...] = ()
    matches: tuple[MatchedPoints, ...] = ()
    question: Question | None = None  # what the only turn asks, for a readout to answer
    system: str = ""  # what the system turn says; empty for the chat template's own


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """`n` examples, each made when it is asked for."""

    name: str  # of the data
    n: int
    make: Callable[[int], Example] = field(repr=False)  # from its index
    left_out: tuple[str, ...] = ()  # bad lines of a file, and why
    notes: tuple[str, ...] = ()  # sentences that the user should read
    forms: tuple[tuple[str, int], ...] = ()  # how many records of a file are of each form
    sha256: str = ""  # of what the examples are made of

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # one at a time
        if not 0 <= index < self.n:
            raise IndexError(f"expected an index below {self.n}, found {index}")
        return self.make(index)

    def said(self) -> list[str]:
        """The lines that a training says about its data before it begins."""
        forms = ", ".join(f"{n} of form {name}" for name, n in self.forms)
        lines = [f"data: {self.name}: {forms}"] if forms else []
        lines += [f"data: {note}" for note in self.notes]
        lines += [f"left out: {line}" for line in self.left_out[:MOST_SHOWN]]
        if (more := len(self.left_out) - MOST_SHOWN) > 0:
            lines.append(f"... and {more} more left out: training.json lists them")
        return lines


def from_question(question: Question) -> Example:
    """Images first, as `kvfix eval` asks; the answer is the letter in parentheses."""
    user = (*[None] * len(question.images), question.prompt)
    turn = Turn(user, question.letter)
    return Example(question.id, question.images, (turn,), question=question)


class Talk(NamedTuple):
    """What is said in a conversation."""

    turns: tuple[Turn, ...]
    system: str


def turns_of(line: Conversation) -> Talk:
    """The turns of a record; no photo is decoded."""
    turns: list[Turn] = []
    user: tuple[str | None, ...] = ()
    system = ""
    for message in line.messages:
        if message.role == "system":
            system = message.content
        elif message.role == "user":
            user = _parts(message.content)
        else:
            turns.append(Turn(user, message.content, message.learned))
    return Talk(tuple(turns), system)


def from_conversation(line: Conversation) -> Example:
    """One record of training data; what its masks cover together is the image's foreground."""
    turns, system = turns_of(line)
    pictures = [photo.read() for photo in line.photos]
    masked = sorted({mask.image for mask in line.masks})
    masks = tuple(Mask(image, _union(line, image, pictures[image].header)) for image in masked)
    by_pair = grouped(line.points, lambda point: (point.image_a, point.image_b))
    matches = tuple(
        MatchedPoints(
            a,
            b,
            pictures[a].header.points(np.array([point.a for point in points])),
            pictures[b].header.points(np.array([point.b for point in points])),
        )
        for (a, b), points in sorted(by_pair.items())
    )
    images = tuple(picture.image for picture in pictures)
    question = _question(line, turns, images)
    return Example(line.id, images, turns, masks, matches, question, system)


def _question(
    line: Conversation, turns: Sequence[Turn], images: tuple[Image.Image, ...]
) -> Question | None:
    """The multiple-choice question of a conversation that is one; None for any other.

    It is one if it has a `sub_task`, a single turn whose images stand first, lettered options on
    lines of their own, and a letter in parentheses as its answer.
    """
    *before, text = turns[0].user
    letter = _ANSWER.fullmatch(turns[0].answer.strip())
    if len(turns) != 1 or not line.sub_task or letter is None or text is None or any(before):
        return None
    choices = [choice for _, choice in _OPTION.findall(text)]
    answer = ord(letter[1]) - ord("A")
    if not 0 <= answer < len(choices):
        return None
    return Question(
        line.id,
        line.id,
        line.sub_task,
        images,
        text,
        tuple(choices),
        answer,
        official_prompt=text,
    )


def named_mask(line: Conversation, image: int, label: str) -> Example:
    """The label alone as the text, and what it names: for the text-value loss."""
    picture = line.photos[image].read()
    mask = Mask(0, _union(line, image, picture.header, label), NO_OUTPUT, named=True)
    turn = Turn((None, label), "")
    return Example(f"{line.id}/{image}/{label}", (picture.image,), (turn,), (mask,))


def _union(line: Conversation, image: int, header: Header, label: str | None = None) -> np.ndarray:
    """All masks of a label on one image as one, as the image is shown."""
    chosen = [m for m in line.masks if m.image == image and label in (None, m.label)]
    return np.maximum.reduce([header.mask(mask.decode()) for mask in chosen])


def conversation_examples(lines: Conversations) -> Examples:
    """Every record, and one more example for each label that its masks have."""
    index: list[tuple[int, int, str] | tuple[int, None, None]] = []
    whole = hashlib.sha256()
    for number, line in enumerate(lines):
        index.append((number, None, None))
        whole.update(line.digest())
        names = dict.fromkeys((m.image, m.label) for m in line.masks)
        index += [(number, image, label) for image, label in names]

    def make(i: int) -> Example:
        number, image, label = index[i]
        if image is None or label is None:
            return from_conversation(lines[number])
        return named_mask(lines[number], image, label)

    return Examples(
        lines.name,
        len(index),
        make,
        left_out=tuple(str(bad) for bad in lines.bad),
        notes=lines.notes,
        forms=lines.forms,
        sha256=whole.hexdigest(),
    )


def _parts(content: str) -> tuple[str | None, ...]:
    """A message with `<image>` marks as texts and images, without the blanks around the marks."""
    parts: list[str | None] = []
    for i, text in enumerate(content.split(PLACEHOLDER)):
        if i:
            parts.append(None)
        if text.strip():
            parts.append(text.strip())
    return tuple(parts)


TURNS = 4


def scene_examples(split: str, n: int, mix: SceneMix) -> Examples:
    """Questions, talk, named masks and matched views of a split of the scenes."""
    kinds, asked = mix.round, mix.asked

    def make(index: int) -> Example:
        turn, place = divmod(index, len(kinds))
        kind = kinds[place]
        if kind == "question":
            nth = turn * kinds.count("question") + place
            return from_question(scene_question(split, asked[nth % len(asked)], nth))
        return _SCENES[kind](split, index, turn)

    return Examples("scenes", n, make, sha256=f"scenes {' '.join(dict.fromkeys(asked))}")


def _talk(split: str, index: int, turn: int) -> Example:
    rng = generator(split, index, "repair talk")
    scene = sample_scene(rng)
    said = conversation(scene, rng, turns=TURNS)
    turns = [
        Turn((None, turn.question) if i == 0 else (turn.question,), turn.answer)
        for i, turn in enumerate(said)
    ]
    return Example(f"{split}_talk_{index}", (render(scene).image,), tuple(turns))


def _named(split: str, index: int, turn: int) -> Example:
    """A class name or an expression as the text, without an answer, and the mask that it names."""
    kind = ("semantic_segmentation", "referring_segmentation")[turn % 2]
    unit = MAKERS[kind](split, index)
    assert isinstance(unit, Sentence)
    mask = Mask(0, unit.mask, SHAPES.index(unit.category), named=True)
    name = Turn((None, unit.text), "")
    return Example(f"repair_{unit.id}", (unit.image,), (name,), masks=(mask,))


def _pair(split: str, index: int, turn: int) -> Example:
    """Two views of a scene, or two objects of one shape with their parts."""
    name = f"{split}_repair_pair_{index}"
    ask = Turn((None, None, "Compare the images."), "")
    if zlib.crc32(name.encode()) % 2:
        unit = MAKERS["semantic_correspondence"](split, index)
        assert isinstance(unit, Pair)
        match = MatchedPoints(0, 1, unit.source_xy, unit.target_xy)
        return Example(name, (unit.source, unit.target), (ask,), matches=(match,))
    rng = generator(split, index, "repair pair")
    image = render(sample_scene(rng)).image
    warp = random_warp(rng)
    xy = rng.uniform(0.05, 0.95, (32, 2)) * SIZE
    there = warp_points(xy, warp)
    seen = ((there > 0) & (there < SIZE - 1)).all(1)
    match = MatchedPoints(0, 1, xy[seen], there[seen])
    return Example(name, (image, warp_image(image, warp)), (ask,), matches=(match,))


_SCENES = {"talk": _talk, "named": _named, "pair": _pair}
