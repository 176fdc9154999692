"""The units that probes score, and the lazy sets they come in.

Units of one `cluster` are resampled together by the bootstrap, because their scores are not
independent (two sentences on one photo). Images are PIL RGB; masks are numpy (height, width);
points are (x, y) in original pixels, pixel centres at integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

VOID = 255  # pixels of a uint8 mask that count neither in the prediction nor in the truth
MCQ = "mcq"  # the task whose units are questions: answered by the model, not scored by a probe


class BadUnit(ValueError):
    """A unit that cannot be scored; the message names the file, the expected and the found."""


@dataclass(frozen=True)
class Episode:
    """Five-shot foreground segmentation: learn `category` on the support, segment the query."""

    id: str
    cluster: str
    support: tuple[Image.Image, ...]
    support_masks: tuple[np.ndarray, ...]  # uint8 (height, width), 0 or 1, 255 void
    query: Image.Image
    query_mask: np.ndarray
    category: str


@dataclass(frozen=True)
class Group:
    """Co-segmentation: images that share one object class."""

    id: str
    cluster: str
    images: tuple[Image.Image, ...]
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Sentence:
    """A class name (semantic) or an expression (referring) and the pixels it names."""

    id: str
    cluster: str
    image: Image.Image
    text: str
    mask: np.ndarray
    category: str


@dataclass(frozen=True)
class Pair:
    """Semantic correspondence: keypoint k of the source is keypoint k of the target."""

    id: str
    cluster: str
    source: Image.Image
    target: Image.Image
    source_xy: np.ndarray  # float (K, 2)
    target_xy: np.ndarray  # float (K, 2)
    target_box: tuple[float, float, float, float]  # x0, y0, x1, y1
    category: str


@dataclass(frozen=True)
class Clip:
    """Temporal correspondence: the masks of frame 0 are propagated, the others are the truth."""

    id: str
    cluster: str
    frames: Sequence[Image.Image]
    masks: Sequence[np.ndarray]  # uint8 (height, width), 0 ground, 1..n objects
    fps: float = 24.0  # frames a second, as a model that takes a video is told; DAVIS has these


@dataclass(frozen=True)
class Question:
    """A multiple-choice question."""

    id: str
    cluster: str
    sub_task: str
    images: tuple[Image.Image, ...]
    question: str
    choices: tuple[str, ...]
    answer: int  # the index of the right choice
    points: tuple[tuple[tuple[str, float, float], ...], ...] = ()  # by image: marked (label, x, y)
    official_prompt: str | None = None  # the complete prompt, of a benchmark that prescribes one
    preamble: str = ""  # what the benchmark's protocol puts before the prompt

    @property
    def prompt(self) -> str:
        """The official prompt verbatim; else the question and its lettered options."""
        if self.official_prompt is not None:
            return self.official_prompt
        options = "\n".join(f"({chr(65 + i)}) {c}" for i, c in enumerate(self.choices))
        return f"{self.question}\nChoose one option:\n{options}"

    @property
    def letter(self) -> str:
        """The right option as the model should write it, for instance `(B)`."""
        return f"({chr(65 + self.answer)})"


Unit = Episode | Group | Sentence | Pair | Clip | Question


def images_of(unit: Unit) -> tuple[Image.Image, ...]:
    """The images of a unit that are in memory; a clip's frames are not, they are read later."""
    if isinstance(unit, Episode):
        return (unit.query, *unit.support)
    if isinstance(unit, Sentence):
        return (unit.image,)
    if isinstance(unit, Pair):
        return (unit.source, unit.target)
    return () if isinstance(unit, Clip) else unit.images


@dataclass(frozen=True)
class UnitSet:
    """The units of one task of one dataset."""

    task: str  # such as foreground_segmentation
    dataset: str  # such as scenes or davis2017
    split: str  # its official name
    ids: tuple[str, ...]  # stable, and known without reading an image: a resumed run can skip
    load: Callable[[int], Unit] = field(repr=False)  # reads a unit by its index, or a BadUnit
    sha256: str = ""  # of what the units are made of: files and sizes, or generator and seeds
    cluster: str = "unit"  # what a cluster is, in one word, for the report
    subtasks: tuple[str, ...] = ()  # of each unit, for questions alone

    def __len__(self) -> int:
        return len(self.ids)

    def question(self, index: int) -> Question:
        """A unit of a set of questions."""
        unit = self.load(index)
        assert isinstance(unit, Question), type(unit)
        return unit

    def head(self, limit: int | None) -> UnitSet:
        """The first `limit` units (all for None)."""
        if limit is None or limit >= len(self.ids):
            return self
        return replace(self, ids=self.ids[:limit], subtasks=self.subtasks[:limit])

    def subset(self, indices: Sequence[int]) -> UnitSet:
        """The units of these indices."""
        chosen = tuple(indices)
        ids = tuple(self.ids[i] for i in chosen)
        subtasks = tuple(self.subtasks[i] for i in chosen) if self.subtasks else ()
        return replace(self, ids=ids, subtasks=subtasks, load=lambda i: self.load(chosen[i]))


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Truths(Generic[T_co]):
    """Units by id, and what a prediction for each of them is compared with."""

    units: UnitSet  # its own `load` would read photos too
    load: Callable[[int], T_co]  # reads a truth by its index, or a BadUnit


QUESTION_ID = re.compile(r"([^\W_]+)_(.+)_(\d+)")  # split, task, number


def task_of(question: str) -> str:
    """The task in a question's id, such as `Art_Style` in `val_Art_Style_1`."""
    match = QUESTION_ID.fullmatch(question)
    if match is None:
        raise ValueError(f"expected a question id such as val_Art_Style_1, found {question!r}")
    return match[2]
