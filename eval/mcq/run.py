"""Run multiple-choice questions: the model's answers, and what readouts make of its features.

Answers go to `samples/mcq[.<dataset>].jsonl`, one line for each question; readouts to
`samples/readout[.<dataset>].jsonl`, one line for each question and site. A question that no
readout can decide leaves a line that says why.

A readout runs each image alone. The pass that answers holds the same only of a question's first
image, only where a model does not tile several images otherwise than one, and in low precision not
to the last bit, which would part a run that was interrupted from one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kvfix.data.groups import grouped
from kvfix.data.left_out import naming
from kvfix.data.pictures.read import source_of
from kvfix.data.units import MCQ, Question, UnitSet
from kvfix.eval.mcq import accuracy as mcq
from kvfix.eval.mcq.answer import Answer, answer
from kvfix.eval.mcq.letters.parse import EVERY_LETTER, UNPARSED
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.readouts import READOUTS, Marked, read_out, views_of_each
from kvfix.eval.site import Site
from kvfix.eval.source import Source
from kvfix.eval.suite import TaskRun, Tick, sample_path
from kvfix.mlm.load import Mlm
from kvfix.ranks import dealt
from kvfix.runs.recorder import Recorder, left_out_of
from kvfix.runs.rows import READOUT, AnswerRow, ReadoutRow, Result, Row, Rows, WithoutReadoutRow

T = TypeVar("T")

SCORINGS = ("generation", "logprob")
TOGETHER = 8  # questions that are read out together
Seen = Callable[[Question, Marked | str], None]  # told what was read of a question, or why not


def questions_in_turn(units: UnitSet) -> list[int]:
    """Indices of questions, one of every subtask in turn; a dataset may list task after task."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []  # (how many of its subtask come before, index)
    for i, subtask in enumerate(units.subtasks):
        turns.append((seen[subtask], i))
        seen[subtask] += 1
    return [i for _, i in sorted(turns)]


def readable(units: UnitSet, limit: int | None = None) -> UnitSet:
    """The questions of the subtasks that have a readout; a limit takes from each in turn."""
    chosen = [i for i in questions_in_turn(units) if units.subtasks[i] in READOUTS]
    return units.subset(sorted(chosen[:limit]))


def batches(subtasks: Sequence[str], size: int) -> list[list[int]]:
    """Indices of questions to answer together, at most `size` of one subtask: little is padding."""
    of_subtask = grouped(range(len(subtasks)), lambda i: subtasks[i])
    return [
        members[start : start + size]
        for members in of_subtask.values()
        for start in range(0, len(members), size)
    ]


def record_batches(
    recorder: Recorder,
    batches: Sequence[Sequence[str]],
    rows_of: Callable[[Sequence[Question]], Sequence[Sequence[Row]]],
    told: Callable[[], None],
) -> None:
    """Record the questions that are not on disk yet; ranks of one launch share the batches.

    `told` is called after each question, done before or now.
    """
    units = recorder.units
    index = {name: i for i, name in enumerate(units.ids)}

    def tell(number: int) -> None:
        for _ in batches[number]:
            told()

    def rows(questions: Sequence[Question]) -> Sequence[Sequence[Row]]:
        with naming(image for question in questions for image in question.images):
            return rows_of(questions)

    with recorder:
        for number in dealt(len(batches), tell):
            recorder.batch(batches[number], lambda name: units.question(index[name]), rows)


def run_answers(
    units: UnitSet,
    mlm: Mlm,
    protocol: McqProtocol,
    folder: Path,
    *,
    tick: Tick = lambda task: None,
    by: Callable[[Sequence[Question]], list[Answer]] | None = None,
) -> TaskRun:
    """Answer every question that is not on disk yet.

    A batch is always the same questions, whatever an interruption left undone: in low precision a
    batch moves the last bits of its members. It is the questions of `batches` without those that
    are left out (see `kvfix.data.left_out`). `by` answers a batch in the model's place. `tick` is
    called after each, done before or now.
    """
    path = sample_path(folder, units)
    in_batches = batches(units.subtasks, protocol.batch)
    names = [[units.ids[i] for i in batch] for batch in in_batches]
    answers = by or (lambda questions: answer(mlm, questions, protocol))

    def rows_of(questions: Sequence[Question]) -> list[list[AnswerRow]]:
        found = zip(questions, answers(questions), strict=True)
        return [[question_row(question, units.dataset, got)] for question, got in found]

    recorder = Recorder(units, path, order=[name for batch in names for name in batch])
    record_batches(recorder, names, rows_of, lambda: tick(units.task))
    wanted = set(units.ids)
    rows = Rows(path, AnswerRow, lambda row: row.id in wanted)
    return TaskRun(units, rows, left_out_of(units, path))


def question_row(question: Question, dataset: str, answered: Answer) -> AnswerRow:
    """What was asked, what was answered and what is right: a line of `samples/mcq.jsonl`."""
    right = EVERY_LETTER[question.answer]
    return AnswerRow(
        id=question.id,
        cluster=question.cluster,
        task=MCQ,
        subtask=question.sub_task,
        dataset=dataset,
        correct=int(answered.letter == right),
        letter=answered.letter,
        answer=right,
        unparsed=answered.letter is UNPARSED,
        logprob_correct=None
        if answered.logprobs is None
        else int(answered.logprob_letter == right),
        logprob_letter=answered.logprob_letter,
        logprobs=answered.logprobs,
        per_token=None if answered.logprobs is None else answered.per_token,
        text=answered.text,
        question=question.question,
        options=question.choices,
        images=image_names(question, dataset),
    )


def image_names(question: Question, dataset: str) -> tuple[str, ...]:
    """Where each image of a question is found again: its file, or its number within the question.

    An image of a file or a table is named by that; a painted one as `scenes/<question>/<number>`.
    """
    inside = f"{dataset}/{question.id}"
    return tuple(source_of(image) or f"{inside}/{k}" for k, image in enumerate(question.images))


def run_readouts(
    units: UnitSet,
    source: Source,
    folder: Path,
    *,
    tick: Tick = lambda task: None,
    seen: Seen = lambda question, marked: None,
) -> list[TaskRun]:
    """Read out every question that is not on disk yet.

    A run for each subtask that has a readout, in order of appearance. `seen` is told of each
    question that is read now, for what else is to be made of its features.
    """
    path = readout_path(folder, units)
    record_batches(
        Recorder(units, path),
        read_together(units.ids),
        lambda questions: _read_out(questions, units, source, seen),
        lambda: tick(READOUT),
    )
    wanted = set(units.ids)
    scored = Rows(path, ReadoutRow, lambda row: row.id in wanted)
    left_out = left_out_of(units, path)
    return [
        readout_run(units, subtask, path, wanted, left_out)
        for subtask in dict.fromkeys(row.subtask for row in scored)
    ]


def readout_run(
    units: UnitSet, subtask: str, path: Path, ids: Set[str], left_out: list[dict[str, str]]
) -> TaskRun:
    """The readouts of one subtask among the rows of a file."""
    rows = Rows(path, ReadoutRow, lambda row: row.id in ids and row.subtask == subtask)
    return TaskRun(replace(units, task=READOUT), rows, left_out, subtask)


def readout_path(folder: Path, units: UnitSet) -> Path:
    """Where the readouts of questions lie; `left_out_of` finds there what was left out of all."""
    return sample_path(folder, replace(units, task=READOUT))


def read_together(questions: Sequence[T]) -> list[Sequence[T]]:
    """Questions in the groups whose images may share forward passes."""
    return [questions[start : start + TOGETHER] for start in range(0, len(questions), TOGETHER)]


def _read_out(
    questions: Sequence[Question], units: UnitSet, source: Source, seen: Seen
) -> list[list[Row]]:
    """The rows of each question; one row that says why for a question without a readout."""

    def rows(question: Question, marked: Marked | str) -> list[Row]:
        seen(question, marked)
        return _rows(question, marked, units, source)

    # By map, which lets go of a question's features before the next pass; zip would not.
    return list(map(rows, questions, views_of_each(questions, source)))


def _rows(question: Question, marked: Marked | str, units: UnitSet, source: Source) -> list[Row]:
    if isinstance(marked, str):
        return [WithoutReadoutRow(question.id, READOUT, marked, question.sub_task, units.dataset)]
    rows: list[Row] = []
    for kind in marked.views[0].features:
        got = read_out(question, marked, kind)
        for s, site in enumerate(source.sites(kind)):
            rows.append(readout_row(question, units.dataset, site, int(got.choice_S[s])))
    return rows


def readout_row(
    question: Question,
    dataset: str,
    site: Site,
    choice: int,
    *,
    control: str | None = None,
    training: dict[str, Any] | None = None,
) -> ReadoutRow:
    """The option that a readout takes at a site."""
    return ReadoutRow(
        question.id,
        question.cluster,
        READOUT,
        question.sub_task,
        dataset,
        **site._asdict(),
        metric="accuracy",
        score=float(choice == question.answer),
        choice=choice,
        chance=1 / len(question.choices),
        ceiling=1.0,
        control=control,
        training=training,
    )


def without_readout(units: UnitSet, folder: Path) -> dict[str, int]:
    """Why questions have no readout, and how many each."""
    wanted = set(units.ids)
    rows = Rows(readout_path(folder, units), WithoutReadoutRow, lambda row: row.id in wanted)
    return dict(Counter(row.without_readout for row in rows))


def answer_results(run: TaskRun, *, seed: int = 0) -> list[Result]:
    """Accuracy of the answers, macro, micro and by subtask, under each scoring that they have."""
    rows = list(run.rows)
    if not rows:
        return []
    scorings = SCORINGS if all(row.logprobs is not None for row in rows) else SCORINGS[:1]
    return [line for how in scorings for line in _scored(run.units, rows, how, seed)]


def _scored(units: UnitSet, rows: list[AnswerRow], how: str, seed: int) -> Iterator[Result]:
    field = "letter" if how == "generation" else "logprob_letter"
    asked = [mcq.Question(r.id, r.subtask, r.answer, getattr(r, field)) for r in rows]
    got = mcq.score(asked, seed=seed)
    chance = {task: _mean_chance(rows, task) for task in got.tasks}
    of_all = {
        "accuracy_macro": sum(chance.values()) / len(chance),
        "accuracy_micro": _mean_chance(rows),
    }
    for line in mcq.results(units, got):
        by_chance = of_all.get(line["metric"]) or chance[line["subtask"]]
        yield line | {"scoring": how, "chance": by_chance}


def _mean_chance(rows: list[AnswerRow], subtask: str | None = None) -> float:
    """Of a guess that takes every option equally often."""
    shares = [1 / len(r.logprobs or r.options or ()) for r in rows if subtask in (None, r.subtask)]
    return sum(shares) / len(shares)
