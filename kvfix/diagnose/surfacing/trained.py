"""The trained linear readout of a dataset that has a train split, beside the ones without training.

Questions are read once and their options' features kept in memory (some MiB, whatever the number of
images): those to train on here, those that are reported when they are read out. What the readout
chooses goes to `samples/readout.trained.jsonl`, one line a reported question, so that a finished
run need not train again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kvfix.data.left_out import Attempts, LeftOut, naming, too_many
from kvfix.data.scenes.questions import SKILLS
from kvfix.data.scenes.units import scene_units
from kvfix.data.units import MCQ, Question, UnitSet
from kvfix.eval.mcq.readouts import Marked, views_of_each
from kvfix.eval.mcq.run import (
    read_together,
    readable,
    readout_path,
    readout_row,
    readout_run,
    record_batches,
)
from kvfix.eval.mcq.trained_readout import (
    FOLDS,
    Options,
    TrainedReadout,
    option_features,
    train_readout,
)
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun, Tick, sample_path
from kvfix.ranks import Jury, agreed, everyone, in_order
from kvfix.runs.recorder import Entry, Recorder, left_out_entry, left_out_of
from kvfix.runs.rows import READOUT, ReadoutRow
from kvfix.runs.samples import SampleFile

TRAINED = "trained"  # control of its rows: they are not the model's own
KIND = "value"
A_SUBTASK = 48  # training questions, where the user sets no limit


def _scenes() -> UnitSet:
    return readable(scene_units(MCQ, split="train", n=A_SUBTASK * len(SKILLS)))


# Datasets with questions to train on, apart from those that are reported.
TRAIN_SPLITS: dict[str, Callable[[], UnitSet]] = {"scenes": _scenes}


@dataclass
class ReadOut:
    """How the options of a set's questions differ, as `run_readouts` read them."""

    units: UnitSet
    source: MlmSource
    folder: Path
    features: dict[str, Tensor] = field(default_factory=dict)  # by id

    def keep(self, question: Question, marked: Marked | str) -> None:
        """Remember a question that was read; of a dataset without a train split, none."""
        if isinstance(marked, Marked) and self.units.dataset in TRAIN_SPLITS:
            self.features[question.id] = option_features(marked, KIND)

    def of(self, question: Question) -> Tensor:
        """(S, K, D) of a question.

        One that an earlier start has read out is read again with those that it was read with: in
        low precision the passes' last bits differ by what they share.
        """
        if question.id not in self.features:
            gone = {e["id"] for e in left_out_of(self.units, readout_path(self.folder, self.units))}
            [names] = [some for some in read_together(self.units.ids) if question.id in some]
            index = [self.units.ids.index(name) for name in names if name not in gone]
            questions = [self.units.question(i) for i in index]
            for _ in map(self.keep, questions, views_of_each(questions, self.source)):
                pass
        return self.features[question.id]


class Learned(NamedTuple):
    """One run a subtask, and what could not be trained."""

    runs: list[TaskRun]
    notes: list[str]
    left_out: list[Entry]
    failed: bool


class _Lesson(NamedTuple):
    """What one training question teaches."""

    subtask: str
    options: Options


class _Taught(NamedTuple):
    """What training questions taught, by subtask, and which could not be read."""

    options: dict[str, list[Options]]
    left_out: list[Entry]
    looked: int


def n_trained(units: UnitSet, reported: Mapping[str, Sequence[str]], limit: int | None) -> int:
    """Questions that `trained_readouts` reads: to train, and to report on."""
    if units.dataset not in TRAIN_SPLITS:
        return 0
    return len(_train_units(units, limit)) + sum(map(len, reported.values()))


def _train_units(units: UnitSet, limit: int | None) -> UnitSet:
    return readable(TRAIN_SPLITS[units.dataset](), limit)


def trained_readouts(
    read: ReadOut,
    reported: Mapping[str, Sequence[str]],
    *,
    limit: int | None,
    seed: int,
    tick: Tick = lambda task: None,
) -> Learned:
    """Train a readout for every subtask, and let it answer the `reported` questions, ids by
    subtask.

    `limit` is of training questions in all; None for `A_SUBTASK` a subtask.
    """
    units = read.units
    if units.dataset not in TRAIN_SPLITS:
        return Learned([], [], [], False)
    path = sample_path(read.folder, replace(units, task=READOUT), TRAINED)
    done = agreed(lambda: SampleFile(path).done)
    runs: list[TaskRun] = []
    refused: dict[str, list[str]] = {}  # why -> subtasks
    train = _train_units(units, limit)
    todo = {t: ids for t, ids in reported.items() if not set(ids) <= done}
    # All kinds, whatever an interruption left undone: a pass is always of the same images.
    taught = _read_all(train, read.source, [t for t, ids in reported.items() if ids and todo], tick)
    for of_rank in everyone(read.features):
        read.features |= of_rank
    left_out: list[Entry] = []
    order = [name for ids in reported.values() for name in ids]
    for subtask, ids in reported.items():
        if not ids:
            continue
        if subtask in todo:
            readout = agreed(partial(_trained, taught.options.get(subtask, []), seed))
            if isinstance(readout, str):
                refused.setdefault(readout, []).append(subtask)
                continue
            subset = units.subset([units.ids.index(name) for name in ids])
            record_batches(
                Recorder(subset, path, order=order),
                read_together(subset.ids),
                partial(_rows, read=read, readout=readout, split=train.split),
                lambda: tick(READOUT),
            )
        run = readout_run(units, subtask, path, set(ids), [])
        left_out += left_out_of(units.subset([units.ids.index(name) for name in ids]), path)
        if run.rows:
            runs.append(run)
    notes = [f"Trained readout of {', '.join(t)}: not measured, {w}" for w, t in refused.items()]
    n = sum(map(len, reported.values())) + taught.looked
    failed = too_many(len(left_out) + len(taught.left_out), n)
    return Learned(runs, notes, [*taught.left_out, *left_out], failed)


def _read_all(train: UnitSet, source: MlmSource, subtasks: Sequence[str], tick: Tick) -> _Taught:
    """Training questions of some subtasks; one without a readout teaches nothing."""
    looked = len(train) if subtasks else 0
    groups = read_together(range(looked))
    attempts = Attempts(looked, jury=Jury())

    def told(number: int) -> None:
        for _ in groups[number]:
            tick(READOUT)

    of_groups = in_order(
        len(groups),
        lambda number: attempts.batch(
            groups[number],
            train.question,
            lambda questions: _options(questions, subtasks, source),
        ),
        told,
        then=attempts.finish,
    )
    taught: dict[str, list[Options]] = {}
    left_out: list[Entry] = []
    for i, found in enumerate(chain.from_iterable(of_groups)):
        if isinstance(found, LeftOut):
            left_out.append(left_out_entry(train, train.ids[i], found.why))
        elif found is not None:
            taught.setdefault(found.subtask, []).append(found.options)
    return _Taught(taught, left_out, looked)


def _options(
    questions: Sequence[Question], subtasks: Container[str], source: MlmSource
) -> list[_Lesson | None]:
    """What each question teaches; None for one without a readout, or of another subtask."""
    wanted = [question for question in questions if question.sub_task in subtasks]
    with naming(image for question in wanted for image in question.images):
        views = views_of_each(wanted, source)
        return [_lesson(q, next(views)) if q.sub_task in subtasks else None for q in questions]


def _lesson(question: Question, marked: Marked | str) -> _Lesson | None:
    if isinstance(marked, str):
        return None
    features = option_features(marked, KIND)
    return _Lesson(question.sub_task, Options(features, question.answer, question.cluster))


def _trained(options: Sequence[Options], seed: int) -> TrainedReadout | str:
    """The readout, or why there is none."""
    try:
        return train_readout(options, seed=seed)
    except ValueError as error:
        return str(error)


def _rows(
    questions: Sequence[Question], read: ReadOut, readout: TrainedReadout, split: str
) -> list[list[ReadoutRow]]:
    training = {
        "split": split,
        "n": readout.n,
        "folds": FOLDS,
        "penalty": readout.penalty,
        "cv_accuracy": readout.cv_accuracy,
    }
    site = read.source.sites(KIND)[readout.site]

    def row(question: Question) -> ReadoutRow:
        choice = readout.choose(read.of(question))
        how = {"control": TRAINED, "training": training}
        return readout_row(question, read.units.dataset, site, choice, **how)

    return [[row(question)] for question in questions]
