"""What a second rank saves: `kvfix eval` of the nano by one rank and by two, on two cores.

    python benchmarks/ranks.py [--limit 96]

Both evaluate scenes' foreground segmentation at every layer's values, a task bound by computing,
with one thread for each rank, in turns. Prints wall seconds from the launch to the end, those of
the units alone, and each rank's CPU seconds, which other work on the machine moves less. Goal: two
ranks take at most 0.65x of one rank's time; their results are equal. About five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from kvfix.runs.fingerprint import processor_name

GOAL = 0.65
ROUNDS = 3


class Took(NamedTuple):
    """One evaluation: seconds by the clock, of its units alone, and of each rank's processor."""

    wall: float
    units: float
    cpu: float


def main() -> None:
    """One row for each number of ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=96, help="units")
    limit = parser.parse_args().limit
    took: dict[int, list[Took]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for ranks, of in took.items():
                of.append(_evaluate(ranks, limit, Path(folder, f"{ranks}-{turn}")))
        one, two = (_results(Path(folder, f"{ranks}-0")) for ranks in took)
    title = f"kvfix eval of {limit} units on {processor_name()}, median of {ROUNDS}"
    table = Table("ranks", "wall", "units alone", "CPU of a rank", title=title)
    for ranks, of in took.items():
        table.add_row(str(ranks), *(f"{median(column):.1f} s" for column in zip(*of, strict=True)))
    ratios = [median(b[i] / a[i] for a, b in zip(took[1], took[2], strict=True)) for i in range(3)]
    table.add_row("ratio", *(f"{ratio:.2f}x" for ratio in ratios))
    console = Console(width=100)
    console.print(table)
    console.print(f"goal: units alone at most {GOAL}x; results equal: {one == two}")


def _evaluate(ranks: int, limit: int, out: Path) -> Took:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "-m", "kvfix"]
    asked = ["--task", "foreground_segmentation", "--site", "value", "--limit", str(limit)]
    words = [sys.executable, *launcher, "eval", *asked, "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    *_, units = re.findall(r"^probing .*?, (\d+) s", done.stderr, re.MULTILINE)
    return Took(wall, float(units), cpu / ranks)


def _results(out: Path) -> object:
    return json.loads((out / "run.json").read_text())["results"]


if __name__ == "__main__":
    main()
