"""Ways that take turns, and what a row of the table holds."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Line(NamedTuple):
    """One line of the table; `ratio` is `theirs / ours` unless the goal is an upper bound."""

    name: str
    ours: float
    beside: str
    theirs: float | None
    ratio: float | None
    spread: tuple[float, float]
    goal: str
    memory_mib: float
    agreement: str


def take_turns(
    ways: Mapping[str, Callable[[], float | None]], rounds: int
) -> dict[str, list[float]]:
    """CPU-seconds of each way in each round, after one round to warm up.

    A way that runs elsewhere returns its own seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            elsewhere = way()
            spent = time.process_time() - start if elsewhere is None else elsewhere
            if number:
                seconds[name].append(spent)
    return seconds


def line(
    name: str,
    seconds: dict[str, list[float]],
    ours: str,
    beside: str,
    *,
    goal: str,
    agreement: str = "",
    cost: bool = False,
) -> Line:
    """Compare two ways; `cost` turns the ratio round: ours over theirs."""
    pairs = list(zip(seconds[ours], seconds[beside], strict=True))
    ratios = [a / b if cost else b / a for a, b in pairs]
    return Line(
        name,
        statistics.median(seconds[ours]),
        beside,
        statistics.median(seconds[beside]),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        goal,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        agreement,
    )


def alone(name: str, seconds: float, *, goal: str, agreement: str = "", beside: str = "") -> Line:
    """A line without another way."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Line(name, seconds, beside, None, None, (0.0, 0.0), goal, memory, agreement)
