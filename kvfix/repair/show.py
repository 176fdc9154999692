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

    def __init__(self, steps: int, out: Path, *, main: bool, since: int | None):
        """Nothing is shown before `with`.

        Args:
            steps: Of the run.
            out: Run folder.
            main: Whether this is rank 0.
            since: Go on in the log of an earlier start after this step; None: a new log.
        """
        self._main, self._file = main, out / LOG
        self._since = since
        self._log: IO[str] | None = None
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not main,
        )
        self._task = self._progress.add_task("", total=steps)

    def __enter__(self) -> Monitor:
        """Open the log."""
        if self._main:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            kept = self._kept()
            self._log = self._file.open("w", encoding="utf-8")
            self._log.writelines(kept)
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self._progress.stop()
        if self._log is not None:
            self._log.close()

    def _kept(self) -> list[str]:
        """Lines of an earlier start, without steps that it took after its last checkpoint."""
        if self._since is None or not self._file.is_file():
            return []
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]  # a kill may cut the last one
        return [line for line in whole if json.loads(line)["step"] <= self._since]

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
