"""Ranks of one launch, each a forked process: what was imported before is paid for once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kvfix.launchers import free_port

LIMIT = 240.0  # seconds that ranks may take


def run_ranks(
    n: int,
    work: Callable[[int], int],
    log: Callable[[int], Path],
    *,
    fatal: Callable[[int], bool],
    local_size: str,
) -> dict[int, int]:
    """The exit status of each rank, in the order in which they ended.

    `work(rank)` gives a status, what it prints goes to `log(rank)`. As a launcher does, the others
    are killed once a status is `fatal`. `local_size` is the variable that says how many there are.
    """
    port = free_port()
    left = {_fork(n, rank, port, work, log(rank), local_size): rank for rank in range(n)}
    ended: dict[int, int] = {}
    end = time.monotonic() + LIMIT
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[left.pop(pid)] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end or any(map(fatal, ended.values())):
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return ended


def _fork(
    n: int, rank: int, port: int, work: Callable[[int], int], log: Path, local_size: str
) -> int:
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if n > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", local_size, "MASTER_ADDR", "MASTER_PORT")
        values = (rank, rank, n, n, "127.0.0.1", port)
        os.environ.update(zip(names, map(str, values), strict=True))
    code = work(rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
