"""What capture costs: time beside a plain forward pass, and memory over many units.

    python benchmarks/capture.py                      # the shipped nano
    python benchmarks/capture.py nano DIR             # nano and another model, in turn

A few minutes on two cores. Goals: capture of every layer at most 1.10x a plain forward pass, every
layer at most 1.25x one layer, peak memory at 80 units at most 1.1x that at 8.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kvfix.data.catalog import load_units
from kvfix.data.scenes.paint import generator, render, sample_scene
from kvfix.eval.source import NEUTRAL, MlmSource
from kvfix.eval.suite import run_task
from kvfix.mlm.capture import SITES, Capture
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.shipped import nano_dir

IMAGES = 8  # a batch
ROUNDS = 25
TASK = "foreground_segmentation"  # six images a unit


def main() -> None:
    """One table over all models named."""
    names = sys.argv[1:] or ["nano"]
    table = Table("model", "measured", "base", "with", "ratio", "goal", title="kvfix capture")
    for name in names:
        folder = str(nano_dir()) if name == "nano" else name
        for row in timings(load_mlm(folder)):
            table.add_row(Path(folder).name, *row)
        table.add_row(Path(folder).name, *memory(folder))
    Console(width=110).print(table)


def timings(mlm: Mlm) -> list[tuple[str, str, str, str, str]]:
    """Plain forward, one layer and every layer, in turn within each round; medians."""
    images = [render(sample_scene(generator("test", i, "bench"))).image for i in range(IMAGES)]
    encoded = mlm.encode([Prompt((image,), NEUTRAL) for image in images])

    def plain() -> None:
        mlm.base.model(**encoded.inputs, use_cache=False)

    def captured(layers: list[int] | None) -> Callable[[], None]:
        def run() -> None:
            with Capture(mlm, encoded, sites=SITES, layers=layers) as cap:
                mlm.base.model(**encoded.inputs, use_cache=False)
                cap.collect()

        return run

    ways = {"plain": plain, "one": captured([mlm.n_layers // 2]), "all": captured(None)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(ROUNDS + 2):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    # A ratio is taken within its round: the machine's load moves both sides alike.
    typical = {name: statistics.median(s[2:]) for name, s in seconds.items()}
    return [
        _row(
            "all layers / plain forward",
            typical["plain"],
            typical["all"],
            _ratio(seconds, "plain", "all"),
            1.10,
        ),
        _row(
            "all layers / one layer",
            typical["one"],
            typical["all"],
            _ratio(seconds, "one", "all"),
            1.25,
        ),
    ]


def _ratio(seconds: dict[str, list[float]], base: str, other: str) -> float:
    return statistics.median(
        b / a for a, b in zip(seconds[base][2:], seconds[other][2:], strict=True)
    )


def _row(
    what: str, base: float, other: float, ratio: float, goal: float
) -> tuple[str, str, str, str, str]:
    return what, f"{1e3 * base:.1f} ms", f"{1e3 * other:.1f} ms", f"{ratio:.3f}x", f"<= {goal:.2f}x"


def memory(folder: str) -> tuple[str, str, str, str, str]:
    """Peak resident memory of fresh processes that score 8 and 80 units."""
    few, many = (_peak(folder, n) for n in (8, 80))
    return (
        "peak memory, 80 units / 8 units",
        f"{few:.0f} MiB",
        f"{many:.0f} MiB",
        f"{many / few:.3f}x",
        "<= 1.10x",
    )


def _peak(folder: str, n: int) -> float:
    out = subprocess.run(
        [sys.executable, __file__, "--peak", folder, str(n)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(out.stdout.split()[-1])


def _score_units(folder: str, n: int) -> None:
    """Child process: score n units, print its peak memory in MiB."""
    [units] = load_units(("scenes",), tasks=[TASK], limit=n)
    assert len(units) >= min(n, 8)
    with tempfile.TemporaryDirectory() as run:
        run_task(units, MlmSource(load_mlm(folder)), Path(run))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _score_units(sys.argv[2], int(sys.argv[3]))
    else:
        main()
