"""What every command shows on the terminal: messages, progress, one line for what failed."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from kvfix.wording import cause

# No emoji: the id of an SPair pair may end in ":dog:".
console = Console(stderr=True, emoji=False, width=None if sys.stderr.isatty() else 100)

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def command_line() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["kvfix", *sys.argv[1:]])


def fail(text: str) -> NoReturn:
    """Say in one line what went wrong after the work was done, and exit 1.

    Raises:
        SystemExit: always.
    """
    console.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)
    raise SystemExit(FAILED)


def note(text: str) -> None:
    """One line that the reader of the figures must know."""
    console.print(f"[yellow]note[/yellow] {escape(text)}", soft_wrap=True)


class _Notes(logging.Handler):
    """Shows what the library warns about, wherever it happens."""

    def emit(self, record: logging.LogRecord) -> None:
        """One note a warning."""
        note(record.getMessage())


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    logger, handler = logging.getLogger("kvfix"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class RichWatch:
    """Shows phases as progress bars with the time left."""

    def say(self, text: str) -> None:
        """Tell what begins."""
        console.print(f"[dim]{escape(text)} ...[/dim]", soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[str], None]]:
        """A bar of `total` units."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[now]}"),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(name, total=total, now="")
            yield lambda task: progress.update(bar, advance=1, now=task.replace("_", " "))


def guarded(run: Callable[[], object]) -> None:
    """Run a command: a clear line instead of a traceback (KVFIX_DEBUG=1 shows the traceback).

    Raises:
        SystemExit: with the exit code, however the command ended.
    """
    try:
        with _warnings_as_notes():
            run()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("interrupted; the same command goes on where it stopped")
        raise
    except Exception as error:
        if os.environ.get("KVFIX_DEBUG"):
            raise
        console.print(f"[red]error:[/red] {_plain(error)}", soft_wrap=True)
        raise SystemExit(_code(error)) from None


def _plain(error: Exception) -> str:
    text = escape(cause(error, limit=1000))
    if isinstance(error, ValueError | OSError):
        return text
    # Not one of ours: a library's, or a bug.
    return f"{type(error).__name__}: {text} (KVFIX_DEBUG=1 shows where)"


def _code(error: Exception) -> int:
    from kvfix.data.catalog import WrongSpec

    return WRONG_USAGE if isinstance(error, WrongSpec) else FAILED
