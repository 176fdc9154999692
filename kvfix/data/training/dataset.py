"""Training data of any form as a sequence of conversations, checked when it is opened.

Memory holds an offset and an id for each record; records, photos and masks are read on access.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from kvfix.data.left_out import MOST
from kvfix.data.training.conversation import Conversation
from kvfix.data.training.forms import ReadRecord, pictures, read_record
from kvfix.data.training.photos import Places
from kvfix.data.training.records import Record, Records, open_records
from kvfix.data.units import BadUnit
from kvfix.wording import shown

MOST_BAD = MOST  # share of records that may be bad
_SHOWN = 5  # bad records that an error quotes


class BadLine(NamedTuple):
    """A record that was left out."""

    number: int  # from 1
    why: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.number}: {self.why}"


@dataclass(frozen=True)
class Conversations(Sequence[Conversation]):
    """The good records of a file, each read and parsed on access."""

    name: str  # the file, folder or hub dataset
    records: Records = field(repr=False)
    places: Places
    ids: tuple[str, ...] = field(repr=False)
    numbers: np.ndarray = field(repr=False, compare=False)  # int64, place in the file from 1
    offsets: np.ndarray = field(repr=False, compare=False)  # int64, where to find it again
    bad: tuple[BadLine, ...] = ()  # the records left out
    forms: tuple[tuple[str, int], ...] = ()  # how many there are of each form
    notes: tuple[str, ...] = ()  # sentences on what was ignored or done to records

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | Conversations:
        if isinstance(index, slice):
            return self._chosen(range(len(self))[index])
        name = self.ids[index]
        try:
            row = self.records.read(int(self.offsets[index]))
            found = read_record(row, self.places, look=False).conversation
        except (ValueError, OSError) as error:
            where = f"{self.name}: {self.records.unit} {self.numbers[index]}"
            raise BadUnit(f"{where}: {error}; the file was changed") from error
        if name not in (found.id, _numbered(found.id, int(self.numbers[index]))):
            raise BadUnit(
                f"{self.name}: expected the {self.records.unit} of {name}, found "
                f"{found.id or 'none'}; the file was changed"
            )
        return replace(found, id=name)

    def without(
        self, bad: Sequence[tuple[int, str]], *, most_bad: float = MOST_BAD
    ) -> Conversations:
        """Leave out more records, given by index and reason; holds the rest to the 5 % rule."""
        lost = {index for index, _ in bad}
        lines = [BadLine(int(self.numbers[i]), why, self.records.unit) for i, why in bad]
        kept = self._chosen([i for i in range(len(self)) if i not in lost])
        kept = replace(kept, bad=tuple(sorted((*self.bad, *lines))))
        refuse_many(kept.name, kept.bad, len(kept), most_bad)
        return kept

    def _chosen(self, chosen: Collection[int]) -> Conversations:
        at = np.array(list(chosen), np.int64)
        ids = tuple(self.ids[i] for i in chosen)
        return replace(self, ids=ids, numbers=self.numbers[at], offsets=self.offsets[at])


def read_conversations(
    source: Path | str, *, images: Path | str | None = None, most_bad: float = MOST_BAD
) -> Conversations:
    """Open and check training data of any form; decodes no photo.

    The source is a JSONL file, a JSON list, a parquet or Arrow file, a folder of them or of
    `save_to_disk`, or a hub id; `images` is the folder that image names are relative to, None for
    the file's own. More bad records than the share `most_bad` are a ValueError that quotes the
    first; with 1, none need be good.
    """
    name = str(source)
    records, root = open_records(name)
    scan = _Scan(records, Places(root if images is None else Path(images).expanduser()))
    try:
        for record in records:
            scan.add(record)
    except ValueError as error:  # the list itself is broken
        raise ValueError(f"{name}: {error}") from error
    if not scan.first and not scan.bad:
        raise ValueError(f"{name}: expected training records, found an empty file")
    refuse_many(name, scan.bad, len(scan.first), most_bad)
    return Conversations(
        name,
        records,
        scan.places,
        tuple(scan.first),
        np.array(scan.numbers, np.int64),
        np.array(scan.offsets, np.int64),
        tuple(scan.bad),
        tuple(scan.forms.most_common()),
        tuple(scan.notes()),
    )


@dataclass
class _Scan:
    """What one pass over the records finds."""

    records: Records
    places: Places
    first: dict[str, int] = field(default_factory=dict)  # id -> number
    numbers: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, int] = field(default_factory=dict)  # key -> the first record that has it
    said: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def add(self, record: Record) -> None:
        try:
            if isinstance(record.row, ValueError):
                raise record.row
            self._look_elsewhere(record.row)
            found = read_record(record.row, self.places, look=True)
            name = self._id(found, record.number)
        except (ValueError, OSError, RecursionError) as error:
            self.bad.append(BadLine(record.number, str(error), self.records.unit))
            return
        self.first[name] = record.number
        self.numbers.append(record.number)
        self.offsets.append(record.at)
        self.forms[found.form] += 1
        self.said.update(found.said)
        for key in found.ignored:
            self.ignored.setdefault(key, record.number)

    def _id(self, found: ReadRecord, number: int) -> str:
        """The record's own id; its number makes it unique."""
        name = found.conversation.id
        if name and name not in self.first:
            return name
        self.repeated += bool(name)
        numbered = _numbered(name, number)
        if numbered in self.first:
            raise ValueError(f"expected every id once, found {shown(numbered)} again")
        return numbered

    def _look_elsewhere(self, row: object) -> None:
        """Learn from the first absolute name of another machine where its images are here."""
        if self.places.moved is None:
            for cell in pictures(row):
                if (moved := self.places.moved_from(cell)) is not None:
                    self.places = replace(self.places, moved=moved)

    def notes(self) -> list[str]:
        unit = self.records.unit
        lines = [f"{text} ({n} of {len(self.first)})" for text, n in self.said.items()]
        if self.ignored:
            keys = [shown(key).strip("'\"") for key in sorted(self.ignored)]
            more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
            lines.append(
                f"ignored: {', '.join(keys[:12])}{more} (first in {unit} "
                f"{min(self.ignored.values())})"
            )
        if self.places.moved is not None:
            lines.append(
                f"images of {self.places.moved}, which is not on this machine, are taken from "
                f"{self.places.root}"
            )
        if self.repeated:
            lines.append(f"{self.repeated} ids are repeated: #<{unit}> is added to them")
        return lines


def _numbered(name: str, number: int) -> str:
    return f"{name}#{number}"


def refuse_many(name: str, bad: Sequence[BadLine], good: int, most: float = MOST_BAD) -> None:
    """Raise a ValueError if more records are bad than may be, or none is good."""
    if most >= 1 or (good and len(bad) <= most * (good + len(bad))):
        return
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    raise ValueError(
        f"{name}: expected at most {MOST_BAD:.0%} bad {bad[0].unit}s, found {len(bad)} of "
        f"{good + len(bad)}: {'; '.join(str(line) for line in bad[:_SHOWN])}{more}"
    )
