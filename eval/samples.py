"""The samples of a run on disk: one JSON line a unit and site, safe against an interruption at any
byte.

A unit's lines are written in one call and fsynced. Each line carries `rows`, the number of lines of
its unit, so that a torn unit is recognised, cut off and scored again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class SampleFile:
    """An append-only `samples/<name>.jsonl`."""

    def __init__(self, path: Path):
        """Open for appending; what a crash left half-written is cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, good_bytes = _read_whole_units(path)
        if path.exists() and path.stat().st_size != good_bytes:
            os.truncate(path, good_bytes)

    @property
    def done(self) -> set[str]:
        """Ids of the units that need no work, left-out ones included."""
        return {row["id"] for row in self.rows}

    def append(self, rows: Sequence[Row]) -> None:
        """Write all lines of one unit durably.

        Raises:
            ValueError: no rows, or rows of several units.
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
        self.rows.extend(whole)


def _read_whole_units(path: Path) -> tuple[list[Row], int]:
    """Rows of complete units, and how many bytes of the file they fill."""
    if not path.exists():
        return [], 0
    rows: list[Row] = []
    unit: list[Row] = []
    good = position = 0
    for line in path.read_bytes().splitlines(keepends=True):
        position += len(line)
        row = _parse(line)
        if row is None or (unit and row["id"] != unit[0]["id"]):
            break  # everything from here on was torn
        unit.append(row)
        if len(unit) == row["rows"]:
            rows += unit
            unit, good = [], position
    return rows, good


def _parse(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"id", "rows"} <= row.keys() else None
