"""The samples of a run on disk: one JSON line a unit and site, safe against an interruption at any
byte.

A unit's lines are written in one call and fsynced. Each line carries `rows`, the number of lines of
its unit, so that a torn unit is recognised, cut off and scored again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """Rows of a samples file, read from disk each time they are gone through, never held.

    Args:
        path: the file, complete.
        keep: which rows to see.
    """

    def __init__(self, path: Path, keep: Callable[[Row], bool] = lambda row: True):
        """See the class."""
        self.path, self.keep = path, keep

    def __iter__(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            for line in stream:
                row = json.loads(line)
                if self.keep(row):
                    yield row

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self)


class SampleFile:
    """An append-only `samples/<name>.jsonl`; `done`: ids of the units that need no work."""

    def __init__(self, path: Path):
        """Open for appending; what a crash left half-written is cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done, good_bytes = _whole_units(path)
        if path.exists() and path.stat().st_size != good_bytes:
            os.truncate(path, good_bytes)

    @property
    def rows(self) -> Rows:
        """Every row on disk, those of left-out units included."""
        return Rows(self.path)

    def append(self, rows: Sequence[Row]) -> None:
        """Write all lines of one unit durably.

        Raises:
            ValueError: no rows, rows of several units, or a number that JSON cannot hold.
        """
        ids = {row["id"] for row in rows}
        if len(ids) != 1:
            raise ValueError(f"expected the rows of one unit, found units {sorted(ids)}")
        whole = [{**row, "rows": len(rows)} for row in rows]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in whole)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        self.done |= ids


def _whole_units(path: Path) -> tuple[set[str], int]:
    """Ids of complete units, and how many bytes of the file they fill."""
    done: set[str] = set()
    if not path.exists():
        return done, 0
    unit, seen = "", 0  # the unit being read, and how many of its rows were seen
    good = position = 0
    with path.open("rb") as stream:
        for line in stream:
            position += len(line)
            row = _parse(line)
            if row is None or (seen and row["id"] != unit):
                break  # everything from here on was torn
            unit, seen = row["id"], seen + 1
            if seen == row["rows"]:
                done.add(unit)
                seen, good = 0, position
    return done, good


def _parse(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"id", "rows"} <= row.keys() else None
