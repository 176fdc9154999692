"""What a busy machine costs: a forward pass of the nano, alone and beside a busy process.

    python benchmarks/busy.py

Three ways to wait and count threads, each in a process of its own: one thread (what a
command chooses for a small model) and two, which sleep while they wait (what kvfix sets) or spin
(what OpenMP does otherwise). Goal: what a command does costs at most 2.2x beside the busy process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from multiprocessing import Process
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

GOAL = 2.2
ROUNDS = 30
WAYS = {
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    "two threads that sleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "two threads that spin": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
}


def main() -> None:
    """One row for each way."""
    table = Table("threads", "alone", "beside a busy process", "ratio", "goal", title="kvfix busy")
    for name, variables in WAYS.items():
        took = alone_and_beside(variables)
        ratio = f"{took.beside / took.alone:.2f}x"
        goal = f"<= {GOAL}x" if name == "one thread" else ""
        shown = (f"{1e3 * seconds:.1f} ms" for seconds in took)
        table.add_row(name, *shown, ratio, goal)
    Console(width=100).print(table)


class Took(NamedTuple):
    """Seconds of a pass."""

    alone: float
    beside: float


def alone_and_beside(variables: dict[str, str]) -> Took:
    """Median passes of two processes, the second beside one busy process less than cores."""
    alone = _seconds(variables)
    busy = [Process(target=_spin, daemon=True) for _ in range((os.cpu_count() or 2) - 1)]
    for process in busy:
        process.start()
    beside = _seconds(variables)
    for process in busy:
        process.kill()
    return Took(alone, beside)


def _spin() -> None:
    while True:
        pass


def _seconds(variables: dict[str, str]) -> float:
    """Median of a forward pass, in a process that imports torch under these variables."""
    words = [sys.executable, __file__, "--pass"]
    env = os.environ | variables
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    return float(done.stdout.split()[-1])


def seconds_of_a_pass() -> float:
    """Median of the passes of this process."""
    import torch

    from kvfix.data.scenes.paint import generator, render, sample_scene
    from kvfix.mlm.load import Prompt, load_mlm
    from kvfix.shipped import nano_dir

    mlm = load_mlm(str(nano_dir()))
    image = render(sample_scene(generator("test", 0, "busy"))).image
    encoded = mlm.encode([Prompt((image,), "Describe the image.")])
    took = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 3):
            start = time.perf_counter()
            mlm.base.model(**encoded.inputs, use_cache=False)
            took.append(time.perf_counter() - start)
    return statistics.median(took[3:])


if __name__ == "__main__":
    print(seconds_of_a_pass()) if sys.argv[1:] == ["--pass"] else main()
