"""The rich view of a training on rank 0, and its log: JSON lines, which are the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvfix.terminal import console

LOG = "log.jsonl"


class Monitor:
    """Prints and writes what a training reports; on other ranks it does nothing."""

    def __init__(self, steps: int, out: Path, *, main: bool, append: bool):
        """Nothing is shown before `with`.

        Args:
            steps: Of the run.
            out: Run folder.
            main: Whether this is rank 0.
            append: Go on in the log of an earlier start.
        """
        self._main, self._file = main, out / LOG
        self._mode = "a" if append else "w"
        self._log: IO[str] | None = None
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not main,
        )
        self._task = self._progress.add_task("", total=steps)

    def __enter__(self) -> Monitor:
        """Open the log."""
        if self._main:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._file.open(self._mode, encoding="utf-8")
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self._progress.stop()
        if self._log is not None:
            self._log.close()

    def say(self, text: str) -> None:
        """One line."""
        if self._main:
            self._progress.console.print(text, highlight=False)

    def line(self, logs: dict[str, Any]) -> None:
        """A line of the log."""
        if self._log is None:
            return
        self._log.write(json.dumps(logs) + "\n")
        self._log.flush()
        if "loss" not in logs:
            return
        terms = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in logs.items() if "loss" in k]
        speed = f"{logs.get('images_per_s', 0):.1f} images/s"
        self._progress.update(
            self._task, completed=logs["step"], description=f"{' '.join(terms)}  {speed}"
        )
