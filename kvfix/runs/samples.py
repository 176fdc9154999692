"""The samples of a run on disk: one JSON line a unit and site, safe against any interruption.

A unit's lines are written in one call and fsynced. Each line carries `rows`, the number of lines of
its unit, so that a torn unit is recognised, cut off and scored again. So is a unit that was damaged
later, by whatever; the units around it are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from kvfix.data.groups import grouped
from kvfix.runs.atomic import atomic_file

OUTCOMES = {"score", "correct", "left_out", "without_readout"}  # a line holds one of them
COPIED = 1 << 20  # bytes at once

log = logging.getLogger(__name__)

Line = dict[str, Any]  # see `kvfix.runs.rows` for what it means


class SampleFile:
    """An append-only `samples/<name>.jsonl`; `done`: ids of the units that need no work."""

    def __init__(self, path: Path):
        """Open for appending; what a crash left half-written is cut off, damage is taken out."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces = _pieces(path)
        kept = _whole_units(pieces)
        lost = [p for p in pieces if p not in kept]
        if lost and _is_torn_end(pieces, lost):
            os.truncate(path, lost[0].start)
        elif lost:
            log.warning("%s: %s", path, _said(lost, kept))
            _rewrite(path, list(kept))
        self._order = [str(piece.id) for piece in kept]  # of the units on disk
        self.done = set(self._order)

    @property
    def lines(self) -> Iterator[Line]:
        """Every line on disk as its JSON object, those of left-out units included."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                yield from map(json.loads, stream)

    def append(self, rows: Sequence[Line]) -> None:
        """Write all lines of one unit durably."""
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
        self._order += ids

    def take(self, path: Path) -> None:
        """Add the units of another file that are not here yet; the other file stays as it is."""
        pieces = [p for p in _whole_units(_pieces(path)) if p.id not in self.done]
        if not pieces:
            return
        with path.open("rb") as other, self.path.open("ab") as stream:
            _copy(other, stream, pieces)
            stream.flush()
            os.fsync(stream.fileno())
        self._order += [str(piece.id) for piece in pieces]
        self.done = set(self._order)

    def sort(self, ids: Sequence[str]) -> None:
        """Put the units in the order of `ids`, others after them, as an undisturbed run wrote them.

        Intervals by bootstrap depend on the order of units. Only a unit that was scored again after
        damage stands at another place; without one nothing is written.
        """
        place = {name: i for i, name in enumerate(ids)}
        found = [place.get(name, len(ids)) for name in self._order]
        if found != sorted(found):
            pieces = sorted(
                _whole_units(_pieces(self.path)), key=lambda p: place.get(str(p.id), len(ids))
            )
            _rewrite(self.path, pieces)
            self._order = [str(piece.id) for piece in pieces]


class _Piece(NamedTuple):
    """Lines that belong together: of one unit, whole or a part of it; or one that is no row."""

    id: str | None  # None: no row
    whole: bool
    line: int  # number of the first line, from 1
    lines: int
    start: int  # first byte
    end: int
    digest: bytes  # of a unit; nothing for an empty line


def _pieces(path: Path) -> list[_Piece]:
    pieces: list[_Piece] = []
    if not path.exists():
        return pieces
    unit: _Unit | None = None
    position = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            row = _parse(line)
            if unit is not None and (row is None or not unit.takes(row)):
                pieces.append(unit.piece(position))
                unit = None
            if row is None:
                end = position + len(line)
                pieces.append(_Piece(None, False, number, 1, position, end, line.strip()[:1]))
            else:
                unit = unit or _Unit(row, number, position)
                unit.add(line)
            position += len(line)
    if unit is not None:
        pieces.append(unit.piece(position))
    return pieces


class _Unit:
    def __init__(self, row: Line, line: int, start: int):
        self.id, self.rows, self.line, self.start = row["id"], row["rows"], line, start
        self._seen: list[bytes] = []

    def takes(self, row: Line) -> bool:
        """Whether a line goes on with this unit."""
        return (row["id"], row["rows"]) == (self.id, self.rows) and len(self._seen) < self.rows

    def add(self, line: bytes) -> None:
        """One more line."""
        self._seen.append(hashlib.blake2b(line, digest_size=16).digest())

    def piece(self, end: int) -> _Piece:
        """All of it; a line that occurs twice stands where another was."""
        whole = len(self._seen) == self.rows == len(set(self._seen))
        digest = hashlib.blake2b(b"".join(self._seen), digest_size=16).digest()
        return _Piece(self.id, whole, self.line, len(self._seen), self.start, end, digest)


def _whole_units(pieces: Sequence[_Piece]) -> dict[_Piece, None]:
    """The pieces to keep, in their order: of each unit that has no other piece, or only copies."""
    of_unit = grouped(pieces, lambda piece: piece.id)
    return {
        piece: None
        for piece in pieces
        if piece is of_unit[piece.id][0]
        and all(p.whole and p.digest == piece.digest for p in of_unit[piece.id])
    }


def _is_torn_end(pieces: Sequence[_Piece], lost: Sequence[_Piece]) -> bool:
    """Whether this is what an interruption leaves: rows of one unit, a torn row, or both."""
    last = list(pieces[-len(lost) :])
    return list(lost) == last and [p.whole for p in last] in ([False], [False] * 2)


def _said(lost: Sequence[_Piece], kept: dict[_Piece, None]) -> str:
    """Which lines are damaged, and what that costs."""
    lines = sum(piece.lines for piece in lost)
    again, hidden = len({p.id for p in lost if p.id is not None} - {p.id for p in kept}), False
    for region in _regions(lost):
        unread = sum(p.id is None and p.digest != b"" for p in region)
        again += unread if all(p.id is None for p in region) else 0  # units of one line each
        hidden = hidden or (
            unread > 0 and any(p.id is not None for p in region)
        )  # perhaps of the unit around them
    return (
        f"expected whole units, found line {lost[0].line}"
        f"{f' and {lines - 1} more' if lines > 1 else ''} damaged or repeated; "
        f"{'at least ' if hidden else ''}{again} unit{'s are' if again != 1 else ' is'} scored "
        f"again, {len(kept)} kept"
    )


def _regions(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Pieces that follow each other in the file, together."""
    regions: list[list[_Piece]] = []
    for piece in pieces:
        if regions and regions[-1][-1].end == piece.start:
            regions[-1].append(piece)
        else:
            regions.append([piece])
    return regions


def _rewrite(path: Path, pieces: Sequence[_Piece]) -> None:
    """The file with these pieces alone; a crash leaves the old one."""
    with path.open("rb") as old, atomic_file(path) as new:
        _copy(old, new, pieces)


def _copy(old: IO[bytes], new: IO[bytes], pieces: Sequence[_Piece]) -> None:
    for piece in pieces:
        old.seek(piece.start)
        left = piece.end - piece.start
        while left and (block := old.read(min(left, COPIED))):
            new.write(block)
            left -= len(block)


def _parse(line: bytes) -> Line | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(row, dict) and {"id", "rows"} <= row.keys() and OUTCOMES & row.keys()):
        return None
    rows = row["rows"]
    return row if isinstance(row["id"], str) and type(rows) is int and rows > 0 else None


def _refuse(constant: str) -> float:
    raise ValueError(f"expected a finite number, found {constant}")
