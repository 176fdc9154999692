"""Speed, memory and agreement beside other ways and other tools: one command, one table.

    python -m benchmarks                      # every row
    python -m benchmarks --only kmeans --only bootstrap --rounds 3
    python -m benchmarks --only kmeans --profile      # which functions each side spends its time in

Every row is a process of its own on one thread; its sides take turns within each round, so that
the machine's load moves them alike. Seconds are CPU-seconds (median over rounds), a ratio is taken
within its round (median, and lowest to highest), memory is the largest resident set of the row's
process so far, and of a tool's own. Tools from PyPI run in environments of their own, made on first
use below `~/.cache/kvfix/peers` (or $KVFIX_PEERS); one that cannot be installed is named with the
reason. Why a goal is missed stands below the table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import ROWS, row
from benchmarks.turns import Asked, Contest, Line, measured, profiled
from kvfix.runs.fingerprint import processor_name

COLUMNS = "row", "kvfix", "beside", "", "ratio", "spread", "goal", "memory", "agreement"
WIDTH = 170


def main() -> None:
    """Run the rows one after the other and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, no tools from PyPI")
    parser.add_argument("--profile", action="store_true", help="profiles in place of the table")
    parser.add_argument("--markdown", action="store_true", help="the table as RESULTS.md has it")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        _row(options.row, Asked(options.rounds, options.tiny), options.profile)
        return
    began, lines = time.monotonic(), []
    for name in options.only or ROWS:
        lines += _in_a_process(name, options)
    if not options.profile:
        _show(lines, options.markdown)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall, cpu = time.monotonic() - began, spent.ru_utime + spent.ru_stime
        print(f"{wall / 60:.1f} minutes, {cpu / 60:.1f} CPU-minutes", file=sys.stderr)


def _row(name: str, asked: Asked, profile: bool) -> None:
    """The child's work: a line of JSON for each line of the table, or profiles."""
    import torch

    torch.set_num_threads(1)
    for part in row(name, asked):
        if profile:
            print(profiled(part) if isinstance(part, Contest) else f"{part.name}: no profile")
            continue
        for line in measured(part) if isinstance(part, Contest) else [part]:
            print(json.dumps(line), flush=True)


def _in_a_process(name: str, options: argparse.Namespace) -> list[Line]:
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "benchmarks", "--row", name, "--rounds", str(options.rounds)]
    command += ["--tiny"] if options.tiny else []
    if options.profile:
        subprocess.run([*command, "--profile"], env={**os.environ, **threads}, check=True)
        return []
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    lines = [Line(*json.loads(said)) for said in done.stdout.splitlines() if said.startswith("[")]
    if done.returncode:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        lines.append(Line(name, "failed", why))
    for line in lines:
        print(" | ".join(line), file=sys.stderr, flush=True)
    shown = f"`python -m benchmarks --only {name} --profile`"
    return [line._replace(why=line.why and f"{line.why} ({shown})") for line in lines]


def _show(lines: list[Line], markdown: bool) -> None:
    title = f"kvfix beside others, one thread of {processor()}"
    notes = [f"{line.name}, beside {line.beside}: {line.why}" for line in lines if line.why]
    if markdown:
        print(title, "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", sep="\n")
        for line in lines:
            print(f"| {' | '.join(line[:-1])} |")
        print("", *(f"- {note}" for note in notes), sep="\n")
        return
    table = Table(*COLUMNS, title=title)
    for line in lines:
        table.add_row(*line[:-1])
    console = Console(width=WIDTH)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def processor() -> str:
    """The processor's name, and whether it multiplies bfloat16 natively."""
    flags = Path("/proc/cpuinfo")
    native = flags.is_file() and "avx512_bf16" in flags.read_text()
    return f"{processor_name()} {'with' if native else 'without'} avx512_bf16"


if __name__ == "__main__":
    main()
