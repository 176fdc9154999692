"""Speed, memory and agreement beside other ways and other tools: one command, one table.

    python -m benchmarks                      # every row
    python -m benchmarks --only kmeans --only bootstrap --rounds 3

Every row is a process of its own on one thread; its sides take turns within each round, so that
the machine's load moves them alike. Seconds are CPU-seconds (median over rounds), a ratio is taken
within its round (median, and lowest to highest), memory is the largest resident set of the row's
process. Tools from PyPI run in environments of their own, made on first use below
`~/.cache/kvfix/peers` (or $KVFIX_PEERS); one that cannot be installed is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROWS = ("capture", "segmentation", "kmeans", "propagation", "mcq", "bootstrap", "growth")


def main() -> None:
    """Run the rows one after the other and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        from benchmarks.rows import measure

        print(json.dumps([line._asdict() for line in measure(asked.row, asked.rounds)]))
        return
    columns = "row", "kvfix", "beside", "", "ratio", "spread", "goal", "memory", "agreement"
    table = Table(*columns, title=f"kvfix beside others, one thread of {processor()}")
    for name in asked.only or ROWS:
        for line in _in_a_process(name, asked.rounds):
            print(" | ".join(line), file=sys.stderr, flush=True)
            table.add_row(*line)
    Console(width=170).print(table)


def _in_a_process(name: str, rounds: int) -> list[list[str]]:
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "benchmarks", "--row", name, "--rounds", str(rounds)]
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = (done.stderr.strip() or "no message").splitlines()[-1]
        return [[name, "failed", why, "", "", "", "", "", ""]]
    lines = []
    for line in json.loads(done.stdout.splitlines()[-1]):
        low, high = line["spread"]
        lines.append(
            [
                line["name"],
                f"{1e3 * line['ours']:.1f} ms",
                line["beside"],
                f"{1e3 * line['theirs']:.1f} ms" if line["theirs"] else "",
                f"{line['ratio']:.2f}x" if line["ratio"] else "",
                f"{low:.2f}-{high:.2f}" if line["ratio"] else "",
                line["goal"],
                f"{line['memory_mib']:.0f} MiB",
                line["agreement"],
            ]
        )
    return lines


def processor() -> str:
    """The processor's name, and whether it multiplies bfloat16 natively."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "an unnamed processor"
    names = [s.partition(":")[2].strip() for s in text.splitlines() if s.startswith("model name")]
    return (
        f"{names[0] if names else '?'} {'with' if 'avx512_bf16' in text else 'without'} avx512_bf16"
    )


if __name__ == "__main__":
    main()
