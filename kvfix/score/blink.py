"""BLINK: multiple-choice accuracy of answers written elsewhere, of which a missing one is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvfix.data.units import Truths, UnitSet, task_of
from kvfix.eval.mcq import accuracy
from kvfix.eval.mcq.accuracy import McqScore, Question, TaskScore, ends
from kvfix.eval.mcq.letters.parse import FOLLOWS, UNPARSED, extract, parsed_letter
from kvfix.runs.rows import AnswerRow, Result
from kvfix.score.dumps.read import Dump, read_answers, read_dump
from kvfix.score.record import Scoring, unread

_Job = Scoring[str, Dump]


def truths(path: Path, rules: Mapping[str, Any]) -> Truths[str]:
    """The right letter of each question of the answer key."""
    answers = read_answers(path)
    digest = sha256(json.dumps(sorted(answers.items())).encode()).hexdigest()
    split = next(iter(answers)).partition("_")[0]
    units = UnitSet("mcq", "blink", split, tuple(answers), unread, digest, "question")
    return Truths(units, list(answers.values()).__getitem__)


def predictions(path: Path, truths: Truths[str]) -> Dump:
    """What was written to each question."""
    return read_dump(path, {name: truths.load(i) for i, name in enumerate(truths.units.ids)})


def rows(job: _Job, name: str, answer: str) -> Iterator[AnswerRow]:
    """A question's letter, by the rules of `profile` or as the dump has `parsed` it."""
    dump, profile = job.predictions, job.rules["profile"]
    found = dump.predictions.get(name)
    if not job.rules["parsed"]:
        letter = found and extract(found.text, profile, options=found.options)
    elif not any(p.parsed for p in dump.predictions.values()):
        raise ValueError(
            f"{dump.path}: expected parsed letters (--parsed), found none; leave --parsed out to "
            "extract them from the text"
        )
    else:
        letter = found and parsed_letter(found.parsed, profile)
    yield AnswerRow(
        name,
        cluster=name,
        task=job.units.task,
        subtask=task_of(name),
        correct=int(letter == answer),
        letter=letter,
        answer=answer,
        unparsed=letter is UNPARSED,
        dataset=job.units.dataset,
        missing=found is None,
        rows=1,
    )


def results(job: _Job) -> Iterator[Result]:
    """Macro, micro and each task's accuracy."""
    yield from accuracy.results(job.units, _score(job))


def details(job: _Job, results: list[Result]) -> dict[str, Any]:
    """Figures of all questions and of each task, and what is odd about the dump."""
    dump, got = job.predictions, _score(job)
    micro = _figures(got.all)
    del micro["missing"]  # the list of ids says more
    field = "parsed" if job.rules["parsed"] else "text"
    return {
        "follows": FOLLOWS[job.rules["profile"]],
        "macro": got.macro.value,
        "macro_ci": ends(got.macro),
        "micro": micro.pop("accuracy"),
        "micro_ci": micro.pop("ci"),
        **micro,
        "tasks": {name: _figures(task) for name, task in got.tasks.items()},
        "not_text": [i for i, p in dump.predictions.items() if getattr(p, field) is None],
        "disagreeing": list(dump.disagreeing),
        "repeated": dump.repeated,
    }


def notes(job: _Job) -> Iterator[str]:
    """What was chosen among several files or answers."""
    yield from job.predictions.notes
    if job.predictions.repeated:
        yield f"further copies of a prediction, all equal: {job.predictions.repeated}"


def _score(job: _Job) -> McqScore:
    questions = [Question(r.id, r.subtask, r.answer, r.letter, r.missing) for r in job.rows]
    return accuracy.score(questions, seed=job.seed)


def _figures(task: TaskScore) -> dict[str, Any]:
    return {
        "accuracy": task.accuracy.value,
        "ci": ends(task.accuracy),
        "unparsed_rate": task.unparsed / task.n,
        **{k: v for k, v in task._asdict().items() if k != "accuracy"},
    }
