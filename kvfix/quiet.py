"""Messages of libraries that nobody who runs kvfix can act on, each by its exact words.

A run shows what kvfix says and what a user can change; everything else of a library still comes
through. pytest is told of the same warnings in pyproject.toml, where every other one fails a test.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Warned(NamedTuple):
    """A warning of Python's: its first words, its class, and why it is of no use."""

    words: str
    category: type[Warning]
    why: str


class Logged(NamedTuple):
    """A line that a library logs: by which logger, its first words, and why it is of no use."""

    logger: str
    words: str
    why: str


WARNINGS = (
    Warned(
        "`is_gradient_checkpointing` is deprecated",
        FutureWarning,
        "peft 0.21.2 asks for it whenever it wraps a model; delete when peft asks for "
        "is_activation_checkpointing",
    ),
    Warned(
        "Found missing adapter keys while loading the checkpoint",
        UserWarning,
        "kvfix looks at the missing keys itself and refuses the adapter",
    ),
)
LOG_LINES = (
    Logged("DeepSpeed", "Setting accelerator to CPU.", "the device is in the run's own record"),
    Logged(
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward",
        "bitsandbytes looks for a kernel at every import; kvfix uses the one without it, see "
        "kvfix.checkpoint.folder.forbid_repacking",
    ),
)


class _Unsaid(logging.Filter):
    """Drops lines that begin with these words."""

    def __init__(self, words: str):
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown."""
        return not record.getMessage().startswith(self._words)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the tables above name, in this block."""
    added = []
    with warnings.catch_warnings():
        for warned in WARNINGS:
            warnings.filterwarnings("ignore", re.escape(warned.words), warned.category)
        try:
            for line in LOG_LINES:
                unsaid = _Unsaid(line.words)
                logging.getLogger(line.logger).addFilter(unsaid)
                added.append((line.logger, unsaid))
            yield
        finally:
            for name, unsaid in added:
                logging.getLogger(name).removeFilter(unsaid)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would be torn by kvfix's."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
