"""The trained linear readout of a dataset that has a train split, beside the ones without training.

Training questions are read once, their options' features kept in memory (some MiB, whatever the
number of images). What the readout chooses goes to `samples/readout.trained.jsonl`, one line a
reported question, so that a finished run need not train again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kvfix.data.left_out import LeftOut, attempted, naming, too_many
from kvfix.data.scenes.questions import SKILLS
from kvfix.data.scenes.units import scene_units
from kvfix.data.units import MCQ, Question, UnitSet
from kvfix.eval.mcq.readouts import Marked, question_views
from kvfix.eval.mcq.run import readable, readout_row, readout_run
from kvfix.eval.mcq.trained_readout import (
    FOLDS,
    Options,
    TrainedReadout,
    option_features,
    train_readout,
)
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun, Tick, sample_path
from kvfix.ranks import agreed, dealt
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


class Learned(NamedTuple):
    """One run a subtask, and what could not be trained."""

    runs: list[TaskRun]
    notes: list[str]
    left_out: list[Entry]
    failed: bool


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
    units: UnitSet,
    reported: Mapping[str, Sequence[str]],
    source: MlmSource,
    folder: Path,
    *,
    limit: int | None,
    seed: int,
    tick: Tick = lambda task: None,
) -> Learned:
    """Train a readout for every subtask, and let it answer the `reported` questions, ids by
    subtask.

    `limit` is of training questions in all; None for `A_SUBTASK` a subtask.
    """
    if units.dataset not in TRAIN_SPLITS:
        return Learned([], [], [], False)
    path = sample_path(folder, replace(units, task=READOUT), TRAINED)
    done = agreed(lambda: SampleFile(path).done)
    runs: list[TaskRun] = []
    refused: dict[str, list[str]] = {}  # why -> subtasks
    train = _train_units(units, limit)
    todo = {t: ids for t, ids in reported.items() if not set(ids) <= done}
    taught = _read_all(train, source, todo, tick)
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
            with Recorder(subset, path, order=order) as recorder:
                for i in dealt(len(ids), lambda i: tick(READOUT)):
                    row = partial(_row, units, ids[i], source, readout, train.split)
                    recorder.unit(ids[i], row)
        run = readout_run(units, subtask, path, set(ids), [])
        left_out += left_out_of(units.subset([units.ids.index(name) for name in ids]), path)
        if run.rows:
            runs.append(run)
    notes = [f"Trained readout of {', '.join(t)}: not measured, {w}" for w, t in refused.items()]
    n = sum(map(len, reported.values())) + taught.looked
    failed = too_many(len(left_out) + len(taught.left_out), n)
    return Learned(runs, notes, [*taught.left_out, *left_out], failed)


def _read_all(
    train: UnitSet, source: MlmSource, todo: Mapping[str, Sequence[str]], tick: Tick
) -> _Taught:
    """Training questions by subtask; one without a readout teaches nothing."""
    taught: dict[str, list[Options]] = {}

    def features(index: int) -> tuple[str, Options] | tuple[()]:
        question = _question(train, index)
        if question.sub_task not in todo:
            return ()
        with naming(question.images):
            marked = question_views(question, source)
            if not isinstance(marked, Marked):
                return ()
            features = option_features(marked, KIND)
        return question.sub_task, Options(features, question.answer, question.cluster)

    looked = len(train) if todo else 0
    left_out: list[Entry] = []
    for i, found in enumerate(attempted(looked, features, lambda i: tick(READOUT))):
        if isinstance(found, LeftOut):
            left_out.append(left_out_entry(train, train.ids[i], found.why))
        elif found:
            taught.setdefault(found[0], []).append(found[1])
    return _Taught(taught, left_out, looked)


def _trained(options: Sequence[Options], seed: int) -> TrainedReadout | str:
    """The readout, or why there is none."""
    try:
        return train_readout(options, seed=seed)
    except ValueError as error:
        return str(error)


def _row(
    units: UnitSet, name: str, source: MlmSource, readout: TrainedReadout, split: str
) -> list[ReadoutRow]:
    question = _question(units, units.ids.index(name))
    with naming(question.images):
        marked = question_views(question, source)
        assert isinstance(marked, Marked), marked  # it was read out before
        choice = readout.choose(option_features(marked, KIND))
    training = {
        "split": split,
        "n": readout.n,
        "folds": FOLDS,
        "penalty": readout.penalty,
        "cv_accuracy": readout.cv_accuracy,
    }
    site = source.sites(KIND)[readout.site]
    return [readout_row(question, units.dataset, site, choice, control=TRAINED, training=training)]


def _question(units: UnitSet, index: int) -> Question:
    question = units.load(index)
    assert isinstance(question, Question), type(question)
    return question
