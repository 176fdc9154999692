"""Kill a command with SIGKILL at random moments, start it again, compare with an undisturbed run.

    python tests/helpers/kill_and_resume.py --kills 20 --seed 0 -- eval --model DIR --limit 4
    python tests/helpers/kill_and_resume.py --kills 20 -- diagnose --model DIR --limit 2
    python tests/helpers/kill_and_resume.py --kills 20 -- compare BEFORE AFTER
    python tests/helpers/kill_and_resume.py --kills 20 -- merge --model DIR --adapter DIR

Everything after `--` is the `kvfix` command without `--out`. A third of the kills hit the start
(imports, locks, the model's weights), the others hit the work and the writing of the report. Prints
the moment of each kill; exits 1 if a unit that was on disk is lost, if something is left behind, or
if the result differs: for `eval` and `diagnose` all results, findings and samples byte by byte, for
`compare` all of compare.json but times, for `merge` every file byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from commands import ENV, KVFIX

RUNS = ("eval", "diagnose")  # commands that go on where they stopped
TIMES = ("started", "seconds", "command", "before", "after")  # of compare.json


class Killed(NamedTuple):
    """One start that was killed: after how many seconds, with how many whole units on disk."""

    after: float
    units: int


class Whole(NamedTuple):
    """An undisturbed run: what came out, after how many seconds its first line, and its end."""

    result: Any
    first: float
    seconds: float
    lines: int


def lines_on_disk(out: Path) -> int:
    """Lines of all samples files, torn ones included."""
    return sum(f.read_bytes().count(b"\n") for f in (out / "samples").glob("*.jsonl"))


def units_on_disk(out: Path) -> set[tuple[str, str]]:
    """File and id of every unit whose lines are all there."""
    found: set[tuple[str, str]] = set()
    for file in (out / "samples").glob("*.jsonl"):
        seen: dict[str, int] = {}
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                row = json.loads(line)
                seen[row["id"]] = seen.get(row["id"], 0) + 1
                if seen[row["id"]] == row["rows"]:
                    found.add((file.name, row["id"]))
    return found


def start(words: list[str], out: Path) -> subprocess.Popen:
    """A `kvfix` command in a process group of its own, silent."""
    return subprocess.Popen(
        [KVFIX, *words, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=ENV,  # threads move the last bits of a score
    )


def finish(words: list[str], out: Path) -> Whole:
    """Run to the end, and say when the first line of samples was there."""
    begun, first = time.monotonic(), None
    process = start(words, out)
    while process.poll() is None:
        if first is None and lines_on_disk(out):
            first = time.monotonic() - begun
        time.sleep(0.02)
    _, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"kvfix {words[0]} ended with {process.returncode}:\n{err.decode()}")
    seconds = time.monotonic() - begun
    return Whole(result(words[0], out), first or seconds, seconds, lines_on_disk(out))


def record(out: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    return json.loads((out / "run.json").read_text())


def result(command: str, out: Path) -> Any:
    """Everything that must be equal however often the command was killed."""
    if command == "compare":
        found = json.loads((out / "compare.json").read_text())
        return {k: v for k, v in found.items() if k not in TIMES}
    files = sorted(out.rglob("*") if command == "merge" else (out / "samples").iterdir())
    found = {
        str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if f.is_file()
    }
    if command in RUNS:
        found |= {key: record(out)[key] for key in ("results", "findings", "left_out")}
    return found


def kill_after(words: list[str], out: Path, *, lines: int, delay: float) -> Killed | None:
    """Start, and kill `delay` seconds after line number `lines`; None if it ended before."""
    begun = time.monotonic()
    process = start(words, out)
    while process.poll() is None and lines_on_disk(out) < lines:
        time.sleep(0.01)
    until = time.monotonic() + delay  # so that it may hit anything, a write included
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    after = time.monotonic() - begun
    ended = process.poll()
    if ended is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate()
    if ended is not None:
        if ended != 0:
            raise SystemExit(f"kvfix {words[0]} ended with {ended}:\n{err.decode()}")
        return None
    return Killed(after, len(units_on_disk(out)))


def killed_run(
    words: list[str], out: Path, whole: Whole, kills: int, rng: random.Random
) -> tuple[Any, list[Killed]]:
    """The result of a run killed at `kills` random moments, then finished.

    Raises:
        SystemExit: a unit that was on disk is lost, or an unfinished folder looks finished.
    """
    moments: list[Killed] = []
    places = iter(sorted(rng.choices(range(whole.lines + 1), k=kills)))
    had: set[tuple[str, str]] = set()
    while len(moments) < kills:
        place, there = next(places, whole.lines), lines_on_disk(out)
        if there == whole.lines:  # also of a command without samples
            killed = kill_after(words, out, lines=0, delay=rng.uniform(0, whole.seconds))
        elif len(moments) % 3 == 0:
            killed = kill_after(words, out, lines=0, delay=rng.uniform(0, whole.first))
        else:
            lines = max(place, there + 1)
            killed = kill_after(words, out, lines=lines, delay=rng.uniform(0, 0.7))
        if killed is not None:
            moments.append(killed)
        if lost := had - (had := units_on_disk(out)):
            raise SystemExit(f"units that were on disk are lost: {sorted(lost)}")
        if words[0] == "merge" and out.exists():  # it ended, or was killed after its last step
            if result("merge", out) != whole.result:
                raise SystemExit(f"{out}: expected all of a merged folder or nothing")
            shutil.rmtree(out)
    return finish(words, out).result, moments


def left_behind(folder: Path) -> list[str]:
    """Locks, half-written files and partial folders."""
    return [
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.name == ".kvfix.lock" or p.name.endswith((".new", ".partial"))
    ]


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
        expected = finish(words, Path(folder, "whole"))
        print(f"undisturbed: {expected.lines} lines, {expected.seconds:.0f} s", flush=True)
        rng = random.Random(options.seed)
        found, moments = killed_run(words, Path(folder, "killed"), expected, options.kills, rng)
        for moment in moments:
            print(f"SIGKILL after {moment.after:.2f} s with {moment.units} whole units on disk")
        left = left_behind(Path(folder))
    if left:
        raise SystemExit(f"left behind: {left}")
    if found != expected.result:
        differing = [
            k for k in found.keys() | expected.result if found.get(k) != expected.result.get(k)
        ]
        raise SystemExit(f"the result differs in {sorted(differing)}")
    print(f"{len(moments)} kills: no unit lost, nothing left behind, an equal result")


if __name__ == "__main__":
    main()
