"""Kill `kvfix eval` with SIGKILL at random moments, resume it, compare with an undisturbed run.

    python tests/kill_and_resume.py --kills 3 --seed 0 -- --model DIR --data davis2017=DIR --limit 4

Everything after `--` goes to `kvfix eval`. Prints the moments of the kills and both results' size;
exits 1 if one result of `run.json` differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from commands import KVFIX


class Killed(NamedTuple):
    """One start that was killed: after how many seconds, with how many units on disk."""

    after: float
    units: int


def lines_on_disk(out: Path) -> int:
    """Lines of all samples files, torn ones included."""
    return sum(f.read_bytes().count(b"\n") for f in (out / "samples").glob("*.jsonl"))


def start(words: list[str], out: Path) -> subprocess.Popen:
    """`kvfix eval` in a process group of its own, silent."""
    return subprocess.Popen(
        [KVFIX, "eval", *words, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def whole_run(words: list[str], out: Path) -> tuple[dict[str, Any], float]:
    """An undisturbed run: its record, and how long its work on samples took, in seconds."""
    begun = time.monotonic()
    process = start(words, out)
    first = None
    while process.poll() is None:
        if first is None and lines_on_disk(out):
            first = time.monotonic() - begun
        time.sleep(0.05)
    _succeeded(process)
    return record(out), time.monotonic() - begun


def _succeeded(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"kvfix eval ended with {process.returncode}:\n{err.decode()}")


def record(out: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    return json.loads((out / "run.json").read_text())


def kill_at(words: list[str], out: Path, lines: int, delay: float) -> Killed | None:
    """Start, and kill `delay` seconds after line number `lines`; None if it ended before."""
    begun = time.monotonic()
    process = start(words, out)
    while process.poll() is None:
        if lines_on_disk(out) >= lines:
            time.sleep(delay)  # so that it may hit anything, a write included
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Killed(time.monotonic() - begun, lines_on_disk(out))
        time.sleep(0.01)
    _succeeded(process)
    return None


def killed_run(
    words: list[str], out: Path, total: int, kills: int, rng: random.Random
) -> tuple[dict[str, Any], list[Killed]]:
    """A run killed at `kills` random places between its first and last line, then finished."""
    places = sorted(rng.sample(range(1, total), kills))
    moments = [m for at in places if (m := kill_at(words, out, at, rng.uniform(0, 0.5)))]
    process = start(words, out)
    process.wait()
    _succeeded(process)
    return record(out), moments


def main() -> None:
    """Run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    own, words = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, words = own[:cut], own[cut + 1 :]
    options = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        expected, seconds = whole_run(words, whole)
        total = lines_on_disk(whole)
        print(f"undisturbed: {total} lines, {len(expected['results'])} results, {seconds:.0f} s")
        rng = random.Random(options.seed)
        found, moments = killed_run(words, killed, total, options.kills, rng)
        for moment in moments:
            print(f"SIGKILL after {moment.after:.1f} s with {moment.units} lines on disk")
        print(f"resumed: {lines_on_disk(killed)} lines, {len(found['results'])} results")
    if len(moments) < options.kills:
        raise SystemExit(f"expected {options.kills} kills, managed {len(moments)}")
    differing = [
        (a, b) for a, b in zip(expected["results"], found["results"], strict=True) if a != b
    ]
    if differing:
        raise SystemExit(f"{len(differing)} results differ, the first: {differing[0]}")
    print("all results are equal")


if __name__ == "__main__":
    main()
