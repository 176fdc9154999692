"""Commands that are one process, under launchers that start several (torchrun, deepspeed, mpirun).

Each of the processes would do the whole work, and all would write one folder.
"""

from __future__ import annotations

import os
import shlex
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
MADE_FOR_RANKS = frozenset({"train"})  # commands that share their work out


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


def refusal(
    program: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> str | None:
    """Why a command must not run here, in one line; None if it may, "" on all ranks but the first.

    The first of the arguments without a dash is the command.
    """
    found = rank(environment)
    command = next((word for word in arguments if not word.startswith("-")), "")
    if found is None or command in MADE_FOR_RANKS:
        return None
    if found.number > 0:
        return ""
    # deepspeed puts --local_rank before everything else.
    typed = shlex.join(word for word in arguments if not word.startswith("--local_rank"))
    return (
        f"expected one process, found {found.of} ({found.variable}), which would write one folder "
        f"each for itself; start it without the launcher: {program} {typed}"
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
