"""10,000 paired bootstrap resamples over clusters of units."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from benchmarks.turns import Asked, Line, memory, milliseconds, take_turns
from kvfix.eval.stats.bootstrap import paired_bootstrap


def compared(asked: Asked) -> Iterator[Line]:
    """1,000 units in clusters of four at 30 sites."""
    units = 40 if asked.tiny else 1000
    before, after = np.random.default_rng(0).normal(size=(2, units, 30))
    clusters = [i // 4 for i in range(units)]

    def run() -> None:
        paired_bootstrap(before, after, clusters)

    seconds = statistics.median(take_turns({"kvfix": run}, asked.rounds)["kvfix"])
    yield Line(
        f"10,000 paired resamples, {units:,} units, 30 sites",
        milliseconds(seconds),
        goal="< 1 s" if seconds < 1 else "< 1 s: missed",
        memory=memory(),
    )
