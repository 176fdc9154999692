"""How many threads a command computes with on the CPU.

A pass through a small model is shorter than it takes threads to wait for one another, most of all
beside another busy process: there one thread is faster than several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 20_000_000  # parameters


def choose_threads(parameters: int) -> None:
    """One thread for a small model, where the user has not set OMP_NUM_THREADS."""
    if parameters < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Undo the choice after this block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
