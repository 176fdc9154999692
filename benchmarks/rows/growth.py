"""Time and memory of 1, 4 and 16 times as many units: linear and flat."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows.inputs import nano
from benchmarks.turns import Asked, Goal, Line, compared_line, milliseconds, resident_mib
from kvfix.data.catalog import load_units
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import run_task

TASK = "semantic_correspondence"
GOAL = Goal(1.1, at_most=True)


def compared(asked: Asked) -> Iterator[Line]:
    """CPU-seconds for each unit and peak memory of processes that score few and many units."""
    base, *more = (1, 2) if asked.tiny else (5, 20, 80)
    seen: dict[int, list[tuple[float, float]]] = {n: [] for n in (base, *more)}
    for _ in range(min(asked.rounds, 3)):
        for n, runs in seen.items():
            runs.append(_in_a_process(n))
    for n in more:
        for part, unit, what in ((0, milliseconds, "time for each unit"), (1, _mib, "memory")):
            few, many = ([run[part] for run in seen[count]] for count in (base, n))
            peak = _mib(max(run[1] for run in seen[n]))
            name = f"{what}, {n} units of correspondence"
            yield compared_line(name, many, f"{base} units", few, GOAL, shown=unit, memory=peak)


def _mib(size: float) -> str:
    return f"{size:.0f} MiB"


def _in_a_process(n: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.rows.growth", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, mib = json.loads(done.stdout.splitlines()[-1])
    return seconds, mib


def score(n: int) -> tuple[float, float]:
    """CPU-seconds for each of n units, after one to warm up, and the largest resident set."""
    source = MlmSource(nano())
    for count in (1, n):
        [units] = load_units(("scenes",), tasks=[TASK], limit=count)
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            run_task(units, source, Path(folder))
    return (time.process_time() - start) / n, resident_mib()


if __name__ == "__main__":
    print(json.dumps(score(int(sys.argv[1]))))
