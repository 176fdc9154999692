"""`kvfix score blink`: multiple-choice accuracy of predictions that were made elsewhere."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvfix.data.left_out import too_many
from kvfix.data.units import task_of
from kvfix.eval.mcq.accuracy import PROTOCOL, McqScore, Question, Span, TaskScore, score
from kvfix.eval.mcq.letters.parse import FOLLOWS, UNPARSED, extract, parsed_letter
from kvfix.score.dumps.read import Dump, read_answers, read_dump
from kvfix.score.record import Outcome, write_scored


@dataclass(frozen=True)
class BlinkOptions:
    """What the command line of `kvfix score blink` can say."""

    predictions: Path  # dump folder or file
    answers: Path  # JSON, question id -> "(A)"
    profile: str = "kvfix"  # rules of extraction
    parsed: bool = False  # trust the dump's parsed letters instead
    out: Path | None = None  # scored folder to write
    seed: int = 0  # of the bootstrap


def score_blink(options: BlinkOptions, *, command: str) -> Outcome:
    """Score multiple-choice predictions against an answer key; forms: `kvfix.score.dumps.read`.

    A question without a prediction is wrong, as in the official scorer.

    Raises:
        ValueError: files that do not fit together or are of no known form, no parsed letters where
            they are asked for, or an `out` that holds something else.
        OSError: a file that is not there.
    """
    start = time.monotonic()
    answers = read_answers(options.answers)
    dump = read_dump(options.predictions, answers)
    if options.parsed and not any(p.parsed for p in dump.predictions.values()):
        raise ValueError(
            f"{options.predictions}: expected parsed letters (--parsed), found none; leave "
            "--parsed out to extract them from the text"
        )
    questions = _questions(answers, dump, options)
    result = score(questions, seed=options.seed)
    record = _blink_record(options, answers, dump, result, questions)
    if options.out is not None:
        rules = {k: record[k] for k in ("profile", "parsed", "protocol")}
        rows = [_row(q) for q in questions]
        write_scored(options.out, record, rows, rules=rules, command=command, start=start)
    n, missing = len(answers), len(record["missing"])
    if not too_many(missing, n):
        return Outcome(record)
    return Outcome(
        record,
        "expected predictions for at least 95 % of the questions, found "
        f"{n - missing} of {n}; the others count as wrong",
    )


def _questions(answers: dict[str, str], dump: Dump, options: BlinkOptions) -> list[Question]:
    questions = []
    for name, answer in answers.items():
        found = dump.predictions.get(name)
        if found is None:
            letter = UNPARSED
        elif options.parsed:
            letter = parsed_letter(found.parsed, options.profile)
        else:
            letter = extract(found.text, options.profile, options=found.options)
        questions.append(Question(name, task_of(name), answer, letter, found is None))
    return questions


def _blink_record(
    options: BlinkOptions,
    answers: dict[str, str],
    dump: Dump,
    result: McqScore,
    questions: list[Question],
) -> dict[str, Any]:
    split = next(iter(answers)).partition("_")[0]
    key_sha256 = sha256(json.dumps(sorted(answers.items())).encode()).hexdigest()
    micro = _task_figures(result.all)
    del micro["missing"]  # the list of ids says more
    field = "parsed" if options.parsed else "text"
    rows = [("accuracy_macro", None, result.macro, result.all.n)]
    rows += [("accuracy_micro", None, result.all.accuracy, result.all.n)]
    rows += [("accuracy", name, t.accuracy, t.n) for name, t in result.tasks.items()]
    return {
        "benchmark": "blink",
        "profile": options.profile,
        "follows": FOLLOWS[options.profile],
        "parsed": options.parsed,
        "protocol": PROTOCOL,
        "seed": options.seed,
        "macro": result.macro.value,
        "macro_ci": _ci(result.macro),
        "micro": micro.pop("accuracy"),
        "micro_ci": micro.pop("ci"),
        **micro,
        "tasks": {name: _task_figures(task) for name, task in result.tasks.items()},
        "missing": [q.id for q in questions if q.missing],
        "not_text": [i for i, p in dump.predictions.items() if getattr(p, field) is None],
        "unknown": list(dump.unknown),
        "disagreeing": list(dump.disagreeing),
        "repeated": dump.repeated,
        "notes": list(dump.notes),
        "predictions": {
            "path": str(options.predictions),
            "files": [str(f) for f in dump.files],
            "n": len(dump.predictions),
            "sha256": dump.sha256,
        },
        "data": [
            {"dataset": "blink", "task": "mcq", "split": split, "n": len(answers)}
            | {"sha256": key_sha256}
        ],
        "results": [
            {"task": "mcq", "dataset": "blink", "split": split, "subtask": subtask}
            | {"site": None, "layer": None, "head": None, "metric": metric}
            | {"value": span.value, "ci": _ci(span), "n": n, "cluster": "question"}
            for metric, subtask, span, n in rows
        ],
    }


def _task_figures(task: TaskScore) -> dict[str, Any]:
    return {
        "accuracy": task.accuracy.value,
        "ci": _ci(task.accuracy),
        "n": task.n,
        "correct": task.correct,
        "unparsed": task.unparsed,
        "unparsed_rate": task.unparsed / task.n,
        "missing": task.missing,
        "letters": task.letters,
        "answers": task.answers,
    }


def _ci(span: Span) -> list[float] | None:
    return None if math.isnan(span.low) else [span.low, span.high]


def _row(q: Question) -> dict[str, Any]:
    return {
        "id": q.id,
        "task": q.task,
        "cluster": q.id,
        "correct": int(q.correct),
        "letter": q.letter,
        "answer": q.answer,
        "unparsed": q.letter is UNPARSED,
        "missing": q.missing,
        "rows": 1,
    }
