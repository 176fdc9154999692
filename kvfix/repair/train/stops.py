"""Ctrl-C and SIGTERM while a training runs: noted, to be acted on where a step ends.

The first one asks for a checkpoint and the end. A second Ctrl-C ends the process at once; not on a
rank of several, where the launcher sends every signal on and a second one is no second wish.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar has hidden it


def without_signals(then: Callable[[int], None], worker: int) -> None:
    """What a worker that prepares batches begins with, before `then`.

    Batch systems and launchers send a signal to all processes at once: a worker that ended for it
    would take away the batch of the step after which its trainer wants to save.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    then(worker)


class Stops:
    """Catches both signals in a `with`, in the main thread; in another one it does nothing.

    `signal` is the first that came, None before; `alone` says that this is the only rank.
    """

    def __init__(self, *, alone: bool):
        self.signal: int | None = None
        self._alone, self._pid = alone, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def code(self) -> int:
        """Exit code of a process that ends for the signal."""
        return 128 + (self.signal or 0)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a worker, forked with this handler: its parent decides
            return
        if self.signal is not None:
            return
        self.signal = number
        note = b"stopping where this step ends, with a checkpoint"
        if self._alone:
            note += b"; Ctrl-C once more ends at once"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # also in the midst of a long operation
        if sys.stderr.isatty():
            note = _SHOW_CURSOR + note
        os.write(2, note + b"\n")
