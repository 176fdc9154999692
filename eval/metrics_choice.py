"""Multiple-choice accuracy, macro over tasks and micro over questions; shares in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class ChoiceAccuracy(NamedTuple):
    """Share of right answers.

    Attributes:
        macro: mean over tasks of their accuracy (official BLINK, lmms-eval).
        micro: over all questions (VLMEvalKit's "Overall").
        tasks: accuracy of each task.
    """

    macro: float
    micro: float
    tasks: dict[Hashable, float]


def choice_accuracy(correct: Sequence[bool], tasks: Sequence[Hashable]) -> ChoiceAccuracy:
    """Macro and micro accuracy.

    Args:
        correct: one a question; an unparsed answer is not correct.
        tasks: one a question.

    Raises:
        ValueError: no question, or lengths that differ.
    """
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
