"""`kvfix diagnose --only surfacing`: the model's answers beside what its values would answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.data.left_out import too_many
from kvfix.data.units import UnitSet
from kvfix.diagnose.surfacing.findings import surfacing_finding, surfacing_result
from kvfix.diagnose.surfacing.table import SCORINGS, align, surfacing
from kvfix.diagnose.surfacing.trained import TRAINED, ReadOut, n_trained, trained_readouts
from kvfix.eval.mcq.pictures import draw_questions
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.readouts import READOUTS
from kvfix.eval.mcq.run import (
    answer_results,
    readout_path,
    run_answers,
    run_readouts,
    without_readout,
)
from kvfix.eval.results import summarise
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun
from kvfix.mlm.load import Mlm
from kvfix.ranks import agreed, is_first
from kvfix.runs.recorder import left_out_of
from kvfix.runs.rows import AnswerRow
from kvfix.session import Part, Watch

MOST_QUESTIONS = 160  # of a dataset, where the user sets no limit


def diagnose_surfacing(
    question_sets: Sequence[UnitSet],
    mlm: Mlm,
    folder: Path,
    protocol: McqProtocol,
    *,
    limit: int | None,
    seed: int,
    watch: Watch,
) -> Part:
    """Answer and read out every question, and count what the answers leave unsaid.

    The sets are of task `mcq`, as `readable` leaves them; a `limit` also bounds the training
    questions.
    """
    part = Part(entries={"surfacing": [], "surfacing_trained": []})
    source = MlmSource(mlm, kinds=("value",), position=False)
    for units in question_sets:
        if not units.ids:
            part.notes.append(
                f"Surfacing of {units.dataset}: not measured, expected questions whose sub_task "
                f"has a readout ({', '.join(READOUTS)}), found none; `kvfix eval` answers all"
            )
            continue
        with watch.phase("answering", len(units)) as tick:
            answers = run_answers(units, mlm, protocol, folder, tick=tick)
        with watch.phase("reading out", len(units)) as tick:
            read = ReadOut(units, source, folder)
            readouts = run_readouts(units, source, folder, tick=tick, seen=read.keep)
        draw_questions(units, folder)
        reported = agreed(partial(_compared, units, answers, readouts, folder, part, seed))
        with watch.phase("reading out, trained", n_trained(units, reported, limit)) as tick:
            learned = trained_readouts(read, reported, limit=limit, seed=seed, tick=tick)
        part.notes += learned.notes
        part.left_out += learned.left_out
        part.failed |= learned.failed
        for run in learned.runs if is_first() else ():
            part.entries["surfacing_trained"] += _trained(run, answers, part, seed)
    return part


def _compared(
    units: UnitSet,
    answers: TaskRun,
    readouts: Sequence[TaskRun],
    folder: Path,
    part: Part,
    seed: int,
) -> dict[str, list[str]]:
    """Add what answers and readouts say to `part`; by subtask the questions that report on it."""
    part.results += answer_results(answers, seed=seed)
    part.results += [r for run in readouts for r in summarise(run, seed=seed)]
    part.left_out += answers.left_out
    part.failed |= answers.too_many_left_out
    unread = left_out_of(units, readout_path(folder, units))
    part.left_out += unread
    part.failed |= too_many(len(unread), len(units))
    part.entries.setdefault("without_readout", {})[units.dataset] = without_readout(units, folder)
    found = [_subtask(run, answers, part, seed) for run in readouts]
    part.entries["surfacing"] += [record for of_run in found for record in of_run.records]
    return {of_run.subtask: of_run.reported for of_run in found}


class _Found(NamedTuple):
    """A subtask's records, and the ids of the questions that they report on."""

    subtask: str
    records: list[dict[str, Any]]
    reported: list[str]


def _subtask(run: TaskRun, answers: TaskRun, part: Part, seed: int) -> _Found:
    """Both scorings of one subtask; its findings go to `part`."""
    subtask, mine = _answers(run, answers)
    records, reported = [], []
    for scoring in SCORINGS:
        readings, table = align(run.rows, mine, scoring)
        columns = table.columns("value")
        if not readings.ids or not columns:
            continue
        found = surfacing(readings, columns=columns, seed=seed)
        reported = list(found.ids)
        named = {"dataset": run.units.dataset, "subtask": subtask, "scoring": scoring}
        records.append(surfacing_result(found, table, **named))
        part.findings.append(surfacing_finding(found, table, **named))
    return _Found(subtask, records, reported)


def _answers(run: TaskRun, answers: TaskRun) -> tuple[str, list[AnswerRow]]:
    """The subtask of readouts, and the answers to its questions."""
    assert run.subtask is not None
    return run.subtask, [row for row in answers.rows if row.subtask == run.subtask]


def _trained(run: TaskRun, answers: TaskRun, part: Part, seed: int) -> list[dict[str, Any]]:
    """Both scorings of one subtask by its trained readout."""
    subtask, mine = _answers(run, answers)
    training = next(iter(run.rows)).training
    how = (
        f"linear, on {training['n']} questions of the {training['split']} split, layer by "
        f"{training['folds']}-fold cross-validation on them"
    )
    part.results += summarise(run, control=TRAINED, seed=seed)
    records = []
    for scoring in SCORINGS:
        readings, table = align(run.rows, mine, scoring)
        found = surfacing(readings, columns=table.columns("value"), chosen=True, seed=seed)
        named = {"dataset": run.units.dataset, "subtask": subtask, "scoring": scoring}
        records.append(surfacing_result(found, table, **named) | {"training": training})
        part.findings.append(surfacing_finding(found, table, **named, trained=how))
    return records
