"""`kvfix` commands whose ranks share the work, each rank in a forked process: one import for all.

    python tests/helpers/shared_runs.py JOBS.json

JOBS.json lists jobs: {"name", "ranks", "words"}; the words are what follows `kvfix`. What each
rank shows goes to NAME.<rank>.log beside JOBS.json, the exit statuses of all to NAME.codes. With
"fault": {"rank", "at", "after", "do"} that rank kills itself ("kill") or raises ("raise") when it
has written so many units ("unit"), while the ranks' units are brought together ("merge"), or before
the record is finished ("end"). As a launcher does, the others are killed when one was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forked import run_ranks

from kvfix import cli, evaluate
from kvfix.diagnose import run as diagnose
from kvfix.runs import recorder, samples


def main(file: Path) -> None:
    """Run the jobs one after the other."""
    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        codes = run(job, file.parent)
        (file.parent / f"{job['name']}.codes").write_text(json.dumps(codes))


def run(job: dict[str, Any], folder: Path) -> list[int]:
    """The exit status of each rank."""
    ended = run_ranks(
        job["ranks"],
        partial(work, job),
        lambda rank: folder / f"{job['name']}.{rank}.log",
        fatal=lambda code: code < 0,
        local_size="LOCAL_WORLD_SIZE",
    )
    return [ended[rank] for rank in range(job["ranks"])]


def work(job: dict[str, Any], rank: int) -> int:
    """The command, on one rank; its exit status."""
    try:
        if job.get("fault", {}).get("rank") == rank:
            plant(**job["fault"])
        sys.argv = ["kvfix", *job["words"]]
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def plant(rank: int, at: str, do: str, after: int = 0) -> None:
    """One fault, on this rank."""

    def strike() -> None:
        if do == "raise":
            raise ValueError(f"expected no fault, found one on rank {rank}")
        os.kill(os.getpid(), signal.SIGKILL)

    append, together = samples.SampleFile.append, recorder.bring_together
    written = []

    def counting(self: Any, rows: Any) -> None:
        append(self, rows)
        written.append(1)
        if len(written) == after:
            strike()

    def half(file: samples.SampleFile, *more: Any) -> None:
        file.take(file.path.parent / "rank1" / file.path.name)
        strike()
        together(file, *more)

    def ending(*args: Any) -> None:
        strike()

    if at == "unit":
        samples.SampleFile.append = counting  # type: ignore[method-assign]
    elif at == "merge":
        recorder.bring_together = half
    else:
        evaluate.write_report = diagnose.write_report = ending  # type: ignore[assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
