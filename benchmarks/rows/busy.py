"""A pass of the nano as commands run it, alone and beside processes on the other cores."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import busy
from benchmarks.turns import Asked, Goal, Line, milliseconds, said

GOAL = Goal(busy.GOAL, at_most=True)


def compared(asked: Asked) -> Iterator[Line]:
    """Wall time, which is what a busy machine costs; a pair of processes in each round."""
    way, variables = next(iter(busy.WAYS.items()))
    pairs = [busy.alone_and_beside(variables) for _ in range(min(asked.rounds, 3))]
    ratios = [pair.beside / pair.alone for pair in pairs]
    ratio = statistics.median(ratios)
    yield Line(
        f"a pass beside busy processes, {way} (wall time)",
        milliseconds(statistics.median(pair.beside for pair in pairs)),
        "alone",
        milliseconds(statistics.median(pair.alone for pair in pairs)),
        f"{ratio:.2f}x",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        said(GOAL, GOAL.is_met(ratio)),
    )
