"""Multiple-choice accuracy, macro and micro over tasks, always beside what was not parsed.

Macro is the mean over tasks of each task's accuracy (zeyofu/BLINK_Benchmark ``eval/evaluate.py``,
lmms-eval); micro is over questions (VLMEvalKit's "Overall"). A question without a parsed answer, or
without any answer, is wrong. Pure functions; scores are shares in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from kvfix.data.groups import grouped
from kvfix.data.units import UnitSet
from kvfix.eval.mcq.letters.parse import EVERY_LETTER, UNPARSED, Letter
from kvfix.eval.site import Site
from kvfix.runs.rows import Result

ACCURACY_PROTOCOL = 2  # raised whenever a change here or in `letters` moves a score
NONE = "unparsed"  # its name in a letter histogram


class Question(NamedTuple):
    """One question as it was answered."""

    id: str  # unique, such as `val_Art_Style_1`
    task: str  # what accuracy is averaged over, such as `Art_Style`
    answer: str  # the right letter
    letter: Letter  # the letter that was chosen, or UNPARSED
    missing: bool = False  # true if there was nothing to parse: the predictions lack the question

    @property
    def correct(self) -> bool:
        """Whether the chosen letter is the right one."""
        return self.letter is not UNPARSED and self.letter == self.answer


class Span(NamedTuple):
    """A share and its 95 % interval; both ends NaN where n is below 2."""

    value: float
    low: float
    high: float


class TaskScore(NamedTuple):
    """One task, or all of them: counts of questions, and letters chosen (NONE included)."""

    accuracy: Span
    n: int
    correct: int
    unparsed: int
    missing: int
    letters: dict[str, int]
    answers: dict[str, int]


class McqScore(NamedTuple):
    """All tasks together."""

    macro: Span  # mean over tasks of their accuracy
    all: TaskScore  # every question; its accuracy is the micro average
    tasks: dict[str, TaskScore]  # by name, in order of appearance


def score(
    questions: Sequence[Question], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> McqScore:
    """Score answered questions, each once.

    Intervals: Wilson's for one task (a bootstrap of 0 of n right has no width), a bootstrap that
    resamples the questions of each task apart for macro and micro. For right and wrong, resampling
    n questions is a binomial draw.
    """
    if not questions:
        raise ValueError("expected at least one question, found none")
    [(twice, count)] = Counter(q.id for q in questions).most_common(1)
    if count > 1:
        raise ValueError(f"expected every question once, found {twice} {count} times")
    by_task = grouped(questions, lambda question: question.task)
    tasks = {}
    for name, members in by_task.items():
        correct = sum(q.correct for q in members)
        tasks[name] = _task_score(members, wilson(correct, len(members), level=level))
    right_T = np.array([t.correct for t in tasks.values()])
    n_T = np.array([t.n for t in tasks.values()])
    draws_BT = np.random.default_rng(seed).binomial(n_T, right_T / n_T, size=(resamples, len(n_T)))
    enough = int(n_T.min()) > 1  # a task of one question would pass for certain
    macro, micro, _ = choice_accuracy([q.correct for q in questions], [q.task for q in questions])
    macro_B, micro_B = (draws_BT / n_T).mean(1), draws_BT.sum(1) / len(questions)
    return McqScore(
        _span(macro, macro_B, level, enough),
        _task_score(questions, _span(micro, micro_B, level, enough)),
        tasks,
    )


def wilson(correct: int, n: int, *, level: float = 0.95) -> Span:
    """A share and Wilson's score interval (Wilson 1927), which is sound at 0 and at n of n too."""
    p = correct / n
    if n < 2:
        return Span(p, math.nan, math.nan)
    z = float(special.ndtri((1 + level) / 2))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # Rounding must not push an end past the value it encloses.
    return Span(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def _span(value: float, draws_B: np.ndarray, level: float, enough: bool) -> Span:
    if not enough:
        return Span(value, math.nan, math.nan)
    low, high = np.quantile(draws_B, ((1 - level) / 2, (1 + level) / 2))
    return Span(value, float(low), float(high))


def _task_score(questions: Sequence[Question], accuracy: Span) -> TaskScore:
    letters = Counter(NONE if q.letter is UNPARSED else q.letter for q in questions)
    answers = Counter(q.answer for q in questions)
    shown = [x for x in EVERY_LETTER if letters[x] or answers[x]]
    return TaskScore(
        accuracy,
        len(questions),
        sum(q.correct for q in questions),
        letters[NONE],
        sum(q.missing for q in questions),
        {x: letters[x] for x in [*shown, NONE]},
        {x: answers[x] for x in shown},
    )


def ends(span: Span) -> list[float] | None:
    """The interval as results hold it; None where there is none."""
    return None if math.isnan(span.low) else [span.low, span.high]


def results(units: UnitSet, got: McqScore) -> Iterator[Result]:
    """Flat results: macro, micro, and the accuracy of each task."""
    spans = [
        ("accuracy_macro", None, got.macro, got.all),
        ("accuracy_micro", None, got.all.accuracy, got.all),
        *(("accuracy", name, task.accuracy, task) for name, task in got.tasks.items()),
    ]
    for metric, subtask, span, counts in spans:
        yield {
            "task": units.task,
            "dataset": units.dataset,
            "split": units.split,
            "subtask": subtask,
            **Site(None)._asdict(),
            "control": None,
            "metric": metric,
            "value": span.value,
            "ci": ends(span),
            "n": counts.n,
            "cluster": units.cluster,
            "unparsed": counts.unparsed / counts.n,
            "letters": counts.letters,
            "answers": counts.answers,
        }


class ChoiceAccuracy(NamedTuple):
    """Share of right answers: the mean over tasks, over all questions, and of each task."""

    macro: float
    micro: float
    tasks: dict[Hashable, float]


def choice_accuracy(correct: Sequence[bool], tasks: Sequence[Hashable]) -> ChoiceAccuracy:
    """Macro and micro accuracy of questions, each right or not and of a task."""
    if not correct or len(correct) != len(tasks):
        raise ValueError(
            f"expected one task a question and at least one question, found {len(correct)} "
            f"questions and {len(tasks)} tasks"
        )
    by_task: dict[Hashable, list[bool]] = {}
    for right, task in zip(correct, tasks, strict=True):
        by_task.setdefault(task, []).append(bool(right))
    shares = {task: sum(rights) / len(rights) for task, rights in by_task.items()}
    # fsum: macro must not depend on the order in which tasks appear.
    macro = math.fsum(shares.values()) / len(shares)
    return ChoiceAccuracy(macro, sum(map(bool, correct)) / len(correct), shares)
