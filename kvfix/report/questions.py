"""The multiple-choice part of a run: accuracy a subtask by both scorings, beside what distorts it.

Terminal table and page read the run through `boards`, so that they show the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvfix.findings import interval, number
from kvfix.report.columns import add_names, add_numbers, lean_table

if TYPE_CHECKING:
    from rich.table import Table

MEANS = {"accuracy_macro": "macro", "accuracy_micro": "micro"}


@dataclass(frozen=True)
class Cell:
    """An accuracy in [0, 1] and its interval."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """`41.2 [33.0–49.9]`, in percent."""
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{100 * self.value:.1f}"
        return f"{100 * self.value:.1f} [{100 * self.low:.0f}–{100 * self.high:.0f}]"


@dataclass(frozen=True)
class Line:
    """One subtask, or a mean over them."""

    name: str
    n: int
    chance: float | None
    generation: Cell
    logprob: Cell
    unparsed: float
    letters: str  # written: `A 60 · B 40`
    logprob_letters: str
    answers: str  # the right ones
    mean: bool

    @property
    def chance_text(self) -> str:
        """Chance in percent."""
        return "–" if self.chance is None else f"{100 * self.chance:.0f}"


@dataclass(frozen=True)
class Board:
    """The questions of one dataset, and why some had no readout."""

    dataset: str
    lines: list[Line]
    without_readout: list[tuple[str, int]]


def boards(run: dict[str, Any]) -> list[Board]:
    """One a dataset with answered questions, subtasks first, then micro and macro."""
    rows = [r for r in run.get("results") or [] if "scoring" in r]  # answers have no site
    found = []
    for dataset in dict.fromkeys(str(r["dataset"]) for r in rows):
        mine = [r for r in rows if r["dataset"] == dataset]
        names = list(dict.fromkeys(_name(r) for r in mine))
        names.sort(key=lambda name: (name in MEANS.values(), name))
        without = (run.get("without_readout") or {}).get(dataset) or {}
        lines = [_line(name, [r for r in mine if _name(r) == name]) for name in names]
        found.append(Board(dataset, lines, sorted(without.items(), key=lambda w: -w[1])))
    return found


def _name(row: dict[str, Any]) -> str:
    return MEANS.get(str(row["metric"])) or str(row.get("subtask"))


def _line(name: str, rows: list[dict[str, Any]]) -> Line:
    by = {r["scoring"]: r for r in rows}
    written, likely = by.get("generation", {}), by.get("logprob", {})
    return Line(
        name,
        int(rows[0].get("n") or 0),
        number(rows[0].get("chance")),
        _cell(written),
        _cell(likely),
        number(written.get("unparsed")) or 0.0,
        _histogram(written.get("letters")),
        _histogram(likely.get("letters")),
        _histogram(rows[0].get("answers")),
        name in MEANS.values(),
    )


def _cell(row: dict[str, Any]) -> Cell:
    return Cell(number(row.get("value")), *interval(row.get("ci")))


def _histogram(letters: Any) -> str:
    pairs: Iterable[tuple[str, int]] = letters.items() if isinstance(letters, dict) else ()
    return " · ".join(f"{'?' if x == 'unparsed' else x} {n}" for x, n in pairs if n)


def table(board: Board) -> Table:
    """One row for each subtask, then the means; in percent, at most 80 columns wide."""
    from rich.text import Text

    shown = lean_table(
        f"multiple choice, {board.dataset}: right answers in percent",
        "unread = no option letter found in the written answer, which counts as wrong",
    )
    names = [line.name.replace("_", " ") for line in board.lines]
    add_names(shown, "task", names, most=20)
    add_numbers(shown, "n", "chance", "written", "log-prob.", "unread")
    shown.add_column("letters\nwritten", overflow="fold", min_width=6)
    for name, line in zip(names, board.lines, strict=True):
        shown.add_row(
            Text(name),
            str(line.n),
            line.chance_text,
            _two_lines(line.generation),
            _two_lines(line.logprob),
            f"{100 * line.unparsed:.0f}",
            Text(line.letters.replace(" ", "\u00a0").replace("\u00a0·\u00a0", ", ")),
            style="bold" if line.mean else None,
        )
    if board.lines:
        shown.caption = f"letters of the right answers: {board.lines[-1].answers}\n{shown.caption}"
    return shown


def _two_lines(cell: Cell) -> str:
    """The interval below its value."""
    return cell.text.replace(" [", "\n[")
