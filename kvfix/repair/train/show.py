"""The rich view of a training on rank 0, and its log: JSON lines, which are the truth."""

from __future__ import annotations

import json
import time
from math import isfinite
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from kvfix.runs.atomic import write_text
from kvfix.terminal import LATER, console

LOG = "log.jsonl"


class Monitor:
    """Prints and writes what a training reports; on other ranks it does nothing."""

    def __init__(self, steps: int, out: Path, *, main: bool):
        """Nothing is shown before `with`, nothing written before `begin`."""
        self._main, self._file = main, out / LOG
        self._log: IO[str] | None = None
        # On a narrow terminal the losses of terms are cut, and everything before them stays.
        losses = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=8),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False, table_column=losses),
            console=console,
            expand=True,
            disable=not (main and console.is_interactive),
        )
        self._task = self._progress.add_task("", total=steps)
        self._next_line = 0.0  # off a terminal: when the next line is due, in monotonic seconds

    def __enter__(self) -> Monitor:
        if self._main:
            self._progress.start()
        return self

    def begin(self, since: int | None) -> None:
        """Open the log, or go on in that of an earlier start after step `since`."""
        if self._main:
            write_text(self._file, "".join(self._kept(since)))
            self._log = self._file.open("a", encoding="utf-8")

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()
        if self._log is not None:
            self._log.close()

    def _kept(self, since: int | None) -> list[str]:
        """Lines of an earlier start, without steps that it took after its last checkpoint."""
        if since is None or not self._file.is_file():
            return []
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]  # a kill may cut the last one
        return [line for line in whole if json.loads(line)["step"] <= since]

    def say(self, text: str) -> None:
        """One line."""
        if self._main:
            self._progress.console.print(text, highlight=False, soft_wrap=True)

    def line(self, logs: dict[str, Any]) -> None:
        """A line of the log."""
        if self._log is None:
            return
        # JSON has no NaN.
        finite = {
            k: None if isinstance(v, float) and not isfinite(v) else v for k, v in logs.items()
        }
        self._log.write(json.dumps(finite, allow_nan=False) + "\n")
        self._log.flush()
        if "loss" not in logs:
            return
        terms = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in logs.items() if "loss" in k]
        speed = f"{logs.get('images_per_s', 0):.1f} images/s"
        said = f"{terms[0]}  {speed}  {' '.join(terms[1:])}".rstrip()
        self._progress.update(self._task, completed=logs["step"], description=said)
        if not console.is_interactive:
            self._tell(logs["step"], said)

    def _tell(self, step: int, said: str) -> None:
        """Off a terminal: a line for the first and the last step, and every LATER seconds."""
        task, now = self._progress.tasks[0], time.monotonic()
        if now < self._next_line and not task.finished:
            return
        self._next_line = now + LATER
        left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
        self.say(f"step {step} of {task.total:.0f}{left}  {said}")
