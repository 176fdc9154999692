"""The rows of `samples/*.jsonl`, typed: written and read here and nowhere else.

A row's `kind` says which class it is. Beside the class's own fields a probe's row carries what its
figures are pooled from (`inter` and `union`, `correct` and `points`), which is `more` here and
stands flat in the file.

Rows of schema 0 had no `kind`: the task of an answer was its subtask, that of a readout
`readout_<subtask>`. They are read as what they would be today.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

from kvfix.data.units import MCQ

SCHEMA = 1  # of rows, results and findings, as run.json names it
READOUT = "readout"  # the task of rows that answer questions from features
# These stand in a file even where they are null.
ALWAYS = {"site", "layer", "head", "control", "letter"}


def full_name(task: str, subtask: str | None = None) -> str:
    """What people read of a task and subtask: `readout_Art_Style`."""
    return task if subtask is None else f"{task}_{subtask}"


@dataclass(frozen=True)
class LeftOutRow:
    """A unit that was left out, and why."""

    id: str
    task: str
    left_out: str
    dataset: str | None = None
    rows: int | None = None
    kind: ClassVar[str] = "left_out"


@dataclass(frozen=True)
class WithoutReadoutRow:
    """A question that no readout can decide, and why."""

    id: str
    task: str
    without_readout: str
    subtask: str | None = None
    dataset: str | None = None
    rows: int | None = None
    kind: ClassVar[str] = "without_readout"


class _Numbers:
    """What is measured of a unit, by name."""

    more: Mapping[str, Any]

    def number(self, name: str) -> Any:
        """A field, or one of the further numbers."""
        return self.more[name] if name in self.more else getattr(self, name)


@dataclass(frozen=True)
class ProbeRow(_Numbers):
    """The score of a unit at a site; without a site where the prediction was made elsewhere."""

    id: str
    cluster: str
    task: str
    dataset: str
    site: str | None
    layer: int | None
    head: int | None
    metric: str
    score: float
    chance: float | None = None
    ceiling: float | None = None
    control: str | None = None  # the control that it was measured under; None for the model itself
    category: str | None = None
    # Further numbers of this unit and site, by name.
    more: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None  # how many lines the unit has in its file; None before it is written
    kind: ClassVar[str] = "probe"
    subtask: ClassVar[str | None] = None


@dataclass(frozen=True)
class ReadoutRow(_Numbers):
    """The option that a readout takes at a site; `score` says whether it is right."""

    id: str
    cluster: str
    task: str
    subtask: str
    dataset: str
    site: str
    layer: int | None
    head: int | None
    metric: str
    score: float
    choice: int  # index of the option
    chance: float | None = None
    ceiling: float | None = None
    control: str | None = None
    # What a trained readout learned from; None for one without training.
    training: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    kind: ClassVar[str] = "readout"
    category: ClassVar[str | None] = None


@dataclass(frozen=True)
class AnswerRow:
    """A question as it was asked and answered, in writing and by option log-probability."""

    id: str
    cluster: str
    task: str
    subtask: str
    correct: int  # 1 if the written answer is right
    letter: str | None  # what was read from the text; None where nothing could be
    answer: str  # the right letter
    unparsed: bool
    dataset: str | None = None
    control: str | None = None
    logprob_correct: int | None = None
    logprob_letter: str | None = None
    # Nats for each option: of the whole answer, of its mean token if `per_token`.
    logprobs: tuple[float, ...] | None = None
    per_token: bool | None = None
    text: str | None = None
    question: str | None = None
    options: tuple[str, ...] | None = None
    # A name for each image, see `kvfix.eval.mcq.run.image_names`.
    images: tuple[str, ...] | None = None
    missing: bool | None = None  # of predictions made elsewhere: there is none
    more: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    kind: ClassVar[str] = "answer"


ScoreRow = ProbeRow | ReadoutRow
Row = ScoreRow | AnswerRow | LeftOutRow | WithoutReadoutRow
R = TypeVar("R", bound=Row)
KINDS: dict[str, type[Row]] = {
    cls.kind: cls for cls in (ProbeRow, ReadoutRow, AnswerRow, LeftOutRow, WithoutReadoutRow)
}
NAMES = {cls: [f.name for f in fields(cls)] for cls in KINDS.values()}
NEEDED = {
    cls: [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
    for cls in KINDS.values()
}


def to_json(item: Row) -> dict[str, Any]:
    """A row as a JSON object; a field that is None is left out, but for `ALWAYS`."""
    out: dict[str, Any] = {"kind": item.kind}
    for name in NAMES[type(item)]:
        value = getattr(item, name)
        if name == "more":
            out |= value
        elif value is not None or name in ALWAYS:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def from_json(item: dict[str, Any], where: str) -> Row:
    """A row of any schema; one that lacks a field or a finite score is a ValueError at `where`."""
    item = item if "kind" in item else _from_schema_0(item)
    cls = KINDS.get(str(item["kind"]))
    if cls is None:
        raise ValueError(f"{where}: expected a kind of {', '.join(KINDS)}, found {item['kind']!r}")
    names = NAMES[cls]
    if missing := [name for name in NEEDED[cls] if name not in item]:
        raise ValueError(f"{where}: expected {', '.join(missing)}, found {sorted(item)}")
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in item.items()
        if name in names
    }
    if "more" in names:
        known["more"] = {k: v for k, v in item.items() if k not in names and k != "kind"}
    _check(known, where)
    return cls(**known)


def _check(known: Mapping[str, Any], where: str) -> None:
    if not all(isinstance(known.get(k, ""), str) for k in ("id", "cluster", "task", "subtask")):
        raise ValueError(f"{where}: expected texts as id, cluster and task, found other types")
    value = known.get("score", known.get("correct", 0))
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite score, found {value!r}")
    if "correct" in known and value not in (0, 1):
        raise ValueError(f"{where}: expected correct to be 0 or 1, found {value!r}")


def _from_schema_0(item: dict[str, Any]) -> dict[str, Any]:
    """What kvfix wrote before rows had a kind."""
    task = item.get("task")
    for kind in ("left_out", "without_readout"):
        if kind in item:
            return {"task": ""} | item | {"kind": kind}
    if "correct" in item and "score" not in item:  # a probe may count correct keypoints
        return item | {"kind": "answer", "subtask": task, "task": MCQ} if "task" in item else item
    if isinstance(task, str) and task.startswith(f"{READOUT}_"):
        subtask = task.removeprefix(f"{READOUT}_")
        return item | {"kind": "readout", "task": READOUT, "subtask": subtask}
    return item | {"kind": "probe"}


class Result(TypedDict, total=False):
    """One figure of run.json, over the units of a task: flat, so that tables read it."""

    task: str
    subtask: str | None  # of questions
    dataset: str
    split: str
    site: str | None  # None where the prediction was made elsewhere, or is an answer
    layer: int | None
    head: int | None
    control: str | None  # what it was measured under; None for the model itself
    metric: str
    value: float | None
    ci: list[float] | None
    n: int  # units
    clusters: int
    cluster: str  # what a cluster is
    chance: float
    ceiling: float
    part: str | None  # of predictions: what it is of (a fold, a category); None for all units
    scoring: str  # of answers: written, or by log-probability
    unparsed: float  # of answers: share without a letter
    letters: Mapping[str, int]  # of answers: how often each was chosen
    answers: Mapping[str, int]  # how often each is right


def _begins(kind: str) -> bytes:
    """How kvfix begins a line of this kind."""
    return f'{{"kind": "{kind}"'.encode()


class Rows(Iterable[R]):
    """Rows of a class in a samples file, read each time they are gone through, never held."""

    def __init__(self, path: Path, of: type[R], keep: Callable[[R], bool] | None = None):
        self.path, self.of, self.keep = path, of, keep

    def __iter__(self) -> Iterator[R]:
        if not self.path.exists():
            return
        others = tuple(_begins(kind) for kind, of in KINDS.items() if not issubclass(of, self.of))
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.startswith(others):
                    continue
                row: Any = from_json(json.loads(line), f"{self.path}:{number}")
                if isinstance(row, self.of) and (self.keep is None or self.keep(row)):
                    yield row

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self)
