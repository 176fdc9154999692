"""A pass of the nano as commands run it, alone and beside processes on the other cores."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import busy
from benchmarks.turns import Asked, Goal, Line, compared_line

GOAL = Goal(busy.GOAL, at_most=True)


def compared(asked: Asked) -> Iterator[Line]:
    """Wall time, which is what a busy machine costs; a pair of processes in each round."""
    way, variables = next(iter(busy.WAYS.items()))
    pairs = [busy.alone_and_beside(variables) for _ in range(min(asked.rounds, 3))]
    alone, beside = ([pair[side] for pair in pairs] for side in (0, 1))
    yield compared_line(
        f"a pass beside busy processes, {way} (wall time)", beside, "alone", alone, GOAL
    )
