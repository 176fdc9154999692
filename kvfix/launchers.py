"""What launchers that start several processes (torchrun, deepspeed, mpirun) say to each of them.

Most commands are one process: each of several would do the whole work, and all would write one
folder.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Number of processes, and which this one is, as launchers say it. Slurm says it of a step: a plain
# sbatch script is one process, however many tasks were asked for.
_VARIABLES = (
    ("WORLD_SIZE", "RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
MEETING = "WORLD_SIZE"  # who says this also says where the processes meet
SHARED = frozenset({"eval", "diagnose"})  # commands whose units the ranks share
MADE_FOR_RANKS = SHARED | {"train"}


class Rank(NamedTuple):
    """Which of several processes this is."""

    number: int  # from 0
    of: int  # processes
    variable: str  # what says so


def rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process among those of a launcher; None if it is alone."""
    for size, number in _VARIABLES:
        if (of := _number(environment.get(size))) > 1:
            return Rank(_number(environment.get(number)), of, size)
    return None


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process among those on its machine, from 0."""
    return _number(environment.get("LOCAL_RANK"))


def local_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of the launch on this machine: as torchrun says it, or deepspeed."""
    return max(1, *(_number(environment.get(v)) for v in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")))


def refusal(
    program: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> str | None:
    """Why a command must not run here, in one line; None if it may, "" on all ranks but the first.

    The first of the arguments without a dash is the command.
    """
    found = rank(environment)
    command = next((word for word in arguments if not word.startswith("-")), "")
    if found is None or (command in MADE_FOR_RANKS and found.variable == MEETING):
        return None
    if found.number > 0:
        return ""
    other = "by torchrun, or " if command in MADE_FOR_RANKS else ""
    typed = shlex.join(without_rank(arguments))
    return (
        f"expected one process, found {found.of} ({found.variable}), which would write one folder "
        f"each for itself; start it {other}without the launcher: {program} {typed}"
    )


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def without_rank(arguments: Sequence[str]) -> list[str]:
    """Arguments without deepspeed's own, which it puts before everything else."""
    return [word for word in arguments if not word.startswith("--local_rank")]


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
