"""Units onto disk: the rows of each, or one row that says why it was left out.

What is left out because of an unexpected fault is held back until another unit has succeeded: a
fault that hits every unit ends the run (see `kvfix.data.left_out`) and must leave no rows behind,
which the next start would take for done.

Ranks of a launch write a file each, which the first brings together (see `kvfix.runs.shares`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from kvfix.data.left_out import Attempts, LeftOut, too_many
from kvfix.data.units import UnitSet
from kvfix.ranks import Jury, agreed, everyone, is_first
from kvfix.runs.rows import LeftOutRow, Row, Rows, to_json
from kvfix.runs.samples import SampleFile
from kvfix.runs.shares import bring_together, own_share

T = TypeVar("T")
Entry = dict[str, str]  # a unit that was left out, as run.json lists it


class Listing:
    """Attempts at so many units whose failures are listed, where no rows are written."""

    def __init__(self, total: int):
        self._attempts = Attempts(total)
        self.left_out: list[Entry] = []
        self.looked = 0  # units so far

    def unit(self, units: UnitSet, name: str, what: Callable[[], T]) -> T | None:
        """What comes of a unit; None if it is left out."""
        self.looked += 1
        got = self._attempts.do(what)
        if not isinstance(got, LeftOut):
            return got
        self.left_out.append(left_out_entry(units, name, got.why))
        return None

    @property
    def too_many_left_out(self) -> bool:
        """Whether more than 5 % of the units so far were left out."""
        return too_many(len(self.left_out), self.looked)


class Recorder:
    """Scores units and appends their rows; a context manager that writes what was held back.

    Every rank of a launch opens one, whichever units it is dealt, and closes it with the others.
    `order` are the ids of all units of the file, as an undisturbed run writes them; None for those
    of `units`.
    """

    def __init__(self, units: UnitSet, path: Path, *, order: Sequence[str] | None = None):
        self.units, self.path = units, path
        self.order = units.ids if order is None else order
        self._whole = SampleFile(path) if is_first() else None
        self.done, proven = agreed(self._found)  # by any rank, in an earlier start
        share = own_share(path)
        self.file = self._whole if self._whole and share == path else SampleFile(share)
        todo = sum(name not in self.done for name in units.ids)
        self._attempts, self._held = Attempts(todo, proven, Jury()), list[Sequence[Row]]()

    def _found(self) -> tuple[set[str], bool]:
        """The units on disk, and whether any of them was scored."""
        assert self._whole is not None
        return set(self._whole.done), any("left_out" not in line for line in self._whole.lines)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._attempts.finish()
            self._write()
            written = everyone(self.file.done)
            if self._whole is not None:
                bring_together(self._whole, written, self.order)
            everyone(None)  # nobody reads the file before it is whole

    def unit(self, name: str, score: Callable[[], Sequence[Row]]) -> None:
        """Score a unit, unless it is on disk."""
        if name not in self.done:
            self._append(name, self._attempts.do(lambda: _checked(score())))

    def batch(
        self,
        names: Sequence[str],
        load: Callable[[str], T],
        score: Callable[[list[T]], Sequence[Sequence[Row]]],
    ) -> None:
        """Read units one by one and score them together, unless all of them are on disk."""
        if all(name in self.done for name in names):
            return
        found = self._attempts.batch(names, load, lambda some: [_checked(r) for r in score(some)])
        for name, rows in zip(names, found, strict=True):
            if name not in self.done:
                self._append(name, rows)

    def _append(self, name: str, rows: Sequence[Row] | LeftOut) -> None:
        if isinstance(rows, LeftOut):
            rows = [LeftOutRow(name, self.units.task, rows.why, self.units.dataset)]
        self._held.append(rows)
        if self._attempts.settled:
            self._write()

    def _write(self) -> None:
        for rows in self._held:
            self.file.append([to_json(row) for row in rows])
            self.done.add(rows[0].id)
        self._held.clear()


def _checked(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows that JSON can hold: NaN is no score."""
    for row in map(to_json, rows):
        try:
            json.dumps(row, allow_nan=False)
        except ValueError as error:
            bad = [name for name, value in row.items() if not _plain(value)]
            raise ValueError(
                f"expected finite numbers, found NaN or infinity in {', '.join(bad)}"
            ) from error
    return rows


def _plain(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def left_out_of(units: UnitSet, path: Path) -> list[Entry]:
    """The units of a set that were left out, and why, from the samples on disk."""
    wanted = set(units.ids)
    return [
        left_out_entry(units, row.id, row.left_out)
        for row in Rows(path, LeftOutRow, lambda row: row.id in wanted)
    ]


def left_out_entry(units: UnitSet, name: str, why: str) -> Entry:
    """A unit that was left out, as run.json lists it."""
    return {"task": units.task, "dataset": units.dataset, "id": name, "why": why}


def once(entries: Sequence[Entry]) -> list[Entry]:
    """Each unit once, with the first of its causes: several measurements read the same units."""
    found: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        found.setdefault((entry["task"], entry["dataset"], entry["id"]), entry)
    return list(found.values())
