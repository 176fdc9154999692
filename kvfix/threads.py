"""How many threads a command computes with on the CPU.

A pass through a small model is shorter than it takes threads to wait for one another, most of all
beside another busy process: there one thread is faster than several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvfix.launchers import local_ranks

SMALL = 20_000_000  # parameters


def choose_threads(parameters: int) -> None:
    """One thread for a small model, where the user has not set OMP_NUM_THREADS.

    Ranks on one machine share its cores out.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    if parameters < SMALL:
        torch.set_num_threads(1)
    elif (here := local_ranks()) > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // here))


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Undo the choice after this block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
