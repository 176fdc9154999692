"""What every command shows on the terminal: messages, progress, one line for what failed.

Much of it holds text that somebody else wrote: ids, labels, paths, messages of libraries. None of
it steers the terminal or writes markup, whoever prints it: the console takes strings literally
(styles come as `rich.text.Text`), and replaces what would act on the terminal instead of standing
on it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from kvfix.launchers import refusal
from kvfix.quiet import quiet
from kvfix.ranks import speaks
from kvfix.wording import cause

if TYPE_CHECKING:
    from rich.progress import Task

SOON, LATER = 4.0, 30.0  # seconds after which a line says how far a phase is
# Control codes of both kinds but tab and line feed, marks that turn the direction of writing or
# break a line, and halves of characters, which no terminal can show.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


def harmless(text: str) -> str:
    """A text in which nothing acts on a terminal; U+FFFD stands for what did."""
    return _ACTING.sub("\ufffd", text)


class _Console(Console):
    """Prints what it is given as text, never as commands; its own colours come later."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Before its width is measured."""
        return super().render_str(harmless(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Whatever else holds text, such as a `Text` that was made elsewhere."""
        if isinstance(renderable, Text):  # before it is folded: widths change
            renderable = renderable.copy()
            renderable.plain = harmless(renderable.plain)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


# No emoji: the id of an SPair pair may end in ":dog:".
console = _Console(
    stderr=True,
    emoji=False,
    markup=False,
    width=None if sys.stderr.isatty() or os.environ.get("COLUMNS") else 100,
)

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def command_line() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["kvfix", *sys.argv[1:]])


def fail(text: str) -> NoReturn:
    """Say in one line what went wrong after the work was done, and exit 1."""
    labelled("error:", "red", text)
    raise SystemExit(FAILED)


def note(text: str) -> None:
    """One line that the reader of the figures must know."""
    labelled("note", "yellow", text)


def labelled(label: str, style: str, text: str) -> None:
    """One line, whatever the text holds, after a label."""
    console.print(Text.assemble((label, style), " ", _BREAKS.sub(" ", text)), soft_wrap=True)


def told(text: str) -> None:
    """A line that wraps between words on a terminal, and stays whole elsewhere."""
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


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
    """Shows phases with the time left: as bars on a terminal, elsewhere as a line now and then."""

    def say(self, text: str) -> None:
        """Tell what begins."""
        console.print(Text(f"{text} ...", "dim"), soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
        """A phase of `total` units, or of one piece of unknown length."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        now = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            *([] if total is None else [MofNCompleteColumn()]),
            TimeElapsedColumn(),
            *([] if total is None else [TextColumn("left"), TimeRemainingColumn()]),
            TextColumn("{task.fields[now]}", style="dim", markup=False, table_column=now),
        )
        bars = console.is_interactive
        with Progress(*columns, console=console, expand=True, disable=not bars) as progress:
            bar = progress.add_task(name, total=total, now="")
            with nullcontext() if bars else _lines(progress.tasks[0]):
                yield lambda task: progress.update(bar, advance=1, now=task.replace("_", " "))


@contextmanager
def _lines(task: Task) -> Iterator[None]:
    """Tell of a phase in whole lines: when it begins, after SOON, every LATER, and when it ends."""
    told = Event()

    def tell() -> None:
        seconds = SOON
        while not told.wait(seconds):
            labelled(task.description, "dim", _how_far(task))
            seconds = LATER

    total = "" if task.total is None else f"0 of {task.total:.0f}"
    labelled(task.description, "dim", total or "...")
    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        told.set()
        teller.join()
    if total:
        labelled(task.description, "dim", _how_far(task))


def _how_far(task: Task) -> str:
    """`12 of 640, 5 s, 260 s left`."""
    parts = [] if task.total is None else [f"{task.completed:.0f} of {task.total:.0f}"]
    parts.append(f"{task.elapsed or 0.0:.0f} s")
    if not task.finished and task.time_remaining is not None:
        parts.append(f"{task.time_remaining:.0f} s left")
    return ", ".join(parts)


def one_process(program: str, arguments: Sequence[str]) -> None:
    """Exit 2, in one line of the first rank, if a launcher started several of this process."""
    why = refusal(program, arguments)
    if why is None:
        return
    if why:
        labelled("error:", "red", why)
    raise SystemExit(WRONG_USAGE)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after what could be kept was kept; `code` is to exit with."""

    def __init__(self, text: str, code: int = INTERRUPTED):
        super().__init__(text)
        self.code = code


def guarded(run: Callable[[], object], *, together: bool = False) -> None:
    """Run a command and exit; what went wrong is one line, with KVFIX_DEBUG=1 a traceback.

    Where the ranks of a launch do it `together`, one of them speaks.
    """

    def silent() -> bool:
        return together and not speaks()

    try:
        with quiet(), _warnings_as_notes(), _nothing_shown(silent()):
            run()
    except SystemExit as stop:
        if stop.code == INTERRUPTED and not silent():  # what typer makes of Ctrl-C
            console.print("interrupted; the same command goes on where it stopped")
        raise
    except Interrupted as stop:
        if (text := str(stop)) and not silent():
            console.print(text, soft_wrap=True)
        raise SystemExit(stop.code) from None
    except KeyboardInterrupt:
        if not silent():
            console.print("interrupted; the same command goes on where it stopped")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if os.environ.get("KVFIX_DEBUG"):
            raise
        if not silent():
            labelled("error:", "red", _plain(error))
        raise SystemExit(_code(error)) from None


@contextmanager
def _nothing_shown(silent: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if silent:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stderr(nothing))
            stack.enter_context(redirect_stdout(nothing))
        yield


def _plain(error: Exception) -> str:
    text = " ".join([cause(error, limit=1000), *getattr(error, "__notes__", ())])
    if isinstance(error, ValueError | OSError | MemoryError):
        return text
    # Not one of ours: a library's, or a bug.
    return f"{type(error).__name__}: {text} (KVFIX_DEBUG=1 shows where)"


def _code(error: Exception) -> int:
    from kvfix.data.catalog import WrongSpec

    return WRONG_USAGE if isinstance(error, WrongSpec) else FAILED
