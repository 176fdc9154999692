"""What a second rank saves: `kvfix eval` of the nano by one rank and by two, on two cores.

    python benchmarks/ranks.py [--limit 96]

Both evaluate scenes' foreground segmentation at every layer's values, a task bound by computing,
with one thread for each rank, in turns. Prints wall seconds from the launch to the end, those of
the units alone, and CPU seconds of the rank that had most of them: of its whole process, and of the
units alone. CPU seconds bound what two free cores take, whatever else the machine does. Goal: two
ranks take at most 0.65x of one rank's time; their results are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from kvfix.runs.fingerprint import processor_name

GOAL = 0.65
ROUNDS = 3
TOLD = "KVFIX_BENCHMARK_CPU"  # where ranks tell what their processors took


class Took(NamedTuple):
    """Seconds of one evaluation; those of the processor are the busiest rank's."""

    wall: float
    units: float
    cpu: float
    units_cpu: float


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
    table = Table("ranks", "wall", "units alone", "CPU", "CPU of units", title=title)
    for ranks, of in took.items():
        table.add_row(str(ranks), *(f"{median(column):.1f} s" for column in zip(*of, strict=True)))
    pairs = list(zip(took[1], took[2], strict=True))
    ratios = [median(b[i] / a[i] for a, b in pairs) for i in range(len(Took._fields))]
    table.add_row("ratio", *(f"{ratio:.2f}x" for ratio in ratios))
    console = Console(width=100)
    console.print(table)
    console.print(f"goal: units alone at most {GOAL}x; results equal: {one == two}")


def _evaluate(ranks: int, limit: int, out: Path) -> Took:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), __file__]
    asked = ["--task", "foreground_segmentation", "--site", "value", "--limit", str(limit)]
    words = [sys.executable, *launcher, "eval", *asked, "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1", TOLD: str(out.with_suffix(".cpu"))}
    start = time.monotonic()
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    wall = time.monotonic() - start
    *_, units = re.findall(r"^probing .*?, (\d+) s", done.stderr, re.MULTILINE)
    told = [json.loads(file.read_text()) for file in out.parent.glob(f"{out.name}.cpu.*")]
    assert len(told) == ranks, told
    return Took(wall, float(units), *map(max, zip(*told, strict=True)))


def _rank() -> None:
    """What each rank runs: `kvfix`, and tells what its processor took, in all and for the units."""
    from kvfix import evaluate
    from kvfix.cli import main

    probe, units = evaluate._probe, []

    def timed(*args: Any) -> Any:
        start = time.process_time()
        found = probe(*args)
        units.append(time.process_time() - start)
        return found

    evaluate._probe = timed  # type: ignore[assignment]
    try:
        main()
    finally:
        took = [time.process_time(), sum(units)]
        Path(f"{os.environ[TOLD]}.{os.environ['RANK']}").write_text(json.dumps(took))


def _results(out: Path) -> object:
    return json.loads((out / "run.json").read_text())["results"]


if __name__ == "__main__":
    _rank() if TOLD in os.environ else main()
