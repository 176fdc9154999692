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
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kvfix import cli, evaluate
from kvfix.diagnose import run as diagnose
from kvfix.runs import recorder, samples

LIMIT = 240.0  # seconds a job may take
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(file: Path) -> None:
    """Run the jobs one after the other."""
    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        codes = run(job, file.parent)
        (file.parent / f"{job['name']}.codes").write_text(json.dumps(codes))


def run(job: dict[str, Any], folder: Path) -> list[int]:
    """The exit status of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {fork(job, rank, port, folder): rank for rank in range(job["ranks"])}
    codes, end = [0] * job["ranks"], time.monotonic() + LIMIT
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[left.pop(pid)] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end or any(code < 0 for code in codes):
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return codes


def fork(job: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    """Start one rank; its id."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(folder / f"{job['name']}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["ranks"] > 1:
        values = (rank, rank, job["ranks"], job["ranks"], "127.0.0.1", port)
        os.environ.update(zip(VARIABLES, map(str, values), strict=True))
    code = 1
    try:
        if job.get("fault", {}).get("rank") == rank:
            plant(**job["fault"])
        sys.argv = ["kvfix", *job["words"]]
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
