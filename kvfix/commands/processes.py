"""A command shares its work among processes of this machine, as it would under a launcher.

A small model leaves all cores but one idle: its passes are too short for several threads to share.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Event, Thread
from typing import Any

import typer

from kvfix.launchers import free_port, rank
from kvfix.shipped import nano_dir
from kvfix.terminal import FAILED, labelled

# Not multiprocessing: it would import again whatever script has called `kvfix.cli.main`.
_AGAIN = """
import json, sys
sys.path[:], sys.argv[:] = json.loads(sys.argv[1]), sys.argv[2:]
from kvfix.commands.processes import follow
follow()
from kvfix.cli import main
main(alone=False)
"""
MOST = 2  # processes that a command takes without being told; each holds about 1 GB
SMALL = 64 * 2**20  # bytes of weights; threads share the passes of larger models well
_LEAVE = 10.0  # seconds for the others to end by themselves, be all well or not
_GPU = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores together, and in which time
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # whatever name, firewall or VPN the machine has


def how_many(
    asked: int | None,
    model: str | None,
    *,
    limit: int | None = None,
    device: str | None = None,
    encoder: str | None = None,
) -> int:
    """Processes that share the work, this one among them.

    Args:
        asked: by the user.
        model: folder or hub id; None: the shipped nano.
        limit: units of a task. A limited run is short; another process would hardly pay.
        device: that the user named.
        encoder: measured beside the model; it may be large.

    Raises:
        typer.BadParameter: the user asked for several although a launcher has started several.
    """
    if (launched := rank()) is not None:
        if asked not in (None, 1):
            raise typer.BadParameter(
                f"--processes {asked}: expected it without a launcher, found {launched.of} "
                f"processes ({launched.variable}); leave one of the two out"
            )
        return 1
    if asked is not None:
        return asked
    gpu = device is None and (any(map(os.path.exists, _GPU)) or sys.platform != "linux")
    short_or_large = limit is not None or encoder is not None
    if gpu or device not in (None, "cpu") or short_or_large or "OMP_NUM_THREADS" in os.environ:
        return 1
    folder = nano_dir() if model is None else Path(model)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return min(MOST, _cores()) if 0 < weights < SMALL else 1


@contextmanager
def shared(processes: int) -> Iterator[None]:
    """Run this process's command line in further processes; all are ranks of one launch.

    When the block fails here, the others end too.
    """
    if processes == 1:
        yield
        return
    launch = _launch(processes)
    before = {name: os.environ.get(name) for name in launch}
    os.environ |= launch
    others, over = [_start(number) for number in range(1, processes)], Event()
    try:
        for other in others:
            Thread(target=_watch, args=(other, over), daemon=True).start()
        yield
    finally:
        over.set()
        for other in others:
            _end(other)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _launch(processes: int) -> dict[str, str]:
    """What a launcher would say to the first of so many processes of this machine."""
    launch: dict[str, Any] = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "RANK": 0,
        "LOCAL_RANK": 0,
    }
    if "TORCH_CPP_LOG_LEVEL" not in os.environ:  # else who is left tells of the others' end in C++
        launch["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    if sys.platform in _LOOPBACK:
        launch["GLOO_SOCKET_IFNAME"] = _LOOPBACK[sys.platform]
    return {name: str(value) for name, value in launch.items()}


def _start(number: int) -> Popen[bytes]:
    """The same command line, of the same packages, as the rank of this number."""
    words = [sys.executable, "-c", _AGAIN, json.dumps(sys.path), *sys.argv]
    rank_of = {"RANK": str(number), "LOCAL_RANK": str(number)}
    # In a session of its own, Ctrl-C reaches the first process alone, which then ends the others.
    return Popen(words, stdin=PIPE, env=os.environ | rank_of, start_new_session=True)


def follow() -> None:
    """End this process with the one that has started it and holds the other end of its input."""

    def leave() -> None:
        os.read(0, 1)  # nothing is ever written there
        os._exit(FAILED)

    Thread(target=leave, daemon=True).start()


def _watch(other: Popen[bytes], over: Event) -> None:
    """End this process if another has failed and this one waits for it, be it for ever."""
    code = other.wait()
    if code and not over.wait(_LEAVE):
        labelled(
            "error:",
            "red",
            "expected further processes to share the work until the end, found that one of them "
            f"ended with code {code}; --processes 1 needs none",
        )
        os._exit(FAILED)


def _end(other: Popen[bytes]) -> None:
    """Let a process end by itself, and say why, but not for long."""
    try:
        other.wait(_LEAVE)
    except TimeoutExpired:
        other.kill()


def _cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container has."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))
