"""Records of a file, a folder or a hub dataset one at a time: lines, a JSON list, tables.

Memory holds one offset for each record, which is read and parsed when it is asked for. Tables are
Arrow files mapped into memory; `datasets` turns parquet into one, in its cache.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kvfix.wording import cause

_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z|\\\Z)|[\[\]{},]', re.DOTALL)
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
TABLES = (".parquet", ".arrow")


class Record(NamedTuple):
    """One of them, as it stands in the file."""

    number: int  # its line, or its place in the list or table, from 1
    at: int  # where to find it again
    row: object | ValueError  # parsed; an error for one that cannot be


class Records(Protocol):
    """A source of records; every pass gives the same ones in the same order."""

    @property
    def unit(self) -> str:
        """What one of them is called in messages."""
        ...

    def __iter__(self) -> Iterator[Record]: ...

    def read(self, at: int) -> Any:
        """The record found there before; raises a ValueError if the file was changed."""
        ...


@dataclass(frozen=True)
class JsonLines:
    """A JSON object on every line that is not blank."""

    path: Path
    unit: str = "line"

    def __iter__(self) -> Iterator[Record]:
        offset = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _record(number, offset, partial(_parsed, raw))
                offset += len(raw)

    def read(self, at: int) -> Any:
        """The record on the line that begins at this byte."""
        with self.path.open("rb") as file:
            file.seek(at)
            return _parsed(file.readline())


@dataclass(frozen=True)
class JsonList:
    """One JSON list of records; its elements are found by their brackets, in linear time."""

    path: Path
    unit: str = "entry"
    _ends: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file, _mapped(file) as whole:
            for number, (start, end) in enumerate(_elements(whole), start=1):
                self._ends[start] = end
                yield _record(number, start, partial(_parsed, whole[start:end]))

    def read(self, at: int) -> Any:
        """The element that begins at this byte."""
        with self.path.open("rb") as file:
            file.seek(at)
            return _parsed(file.read(self._ends[at] - at))


@dataclass(frozen=True)
class Table:
    """Rows of a `datasets` table; pictures stay encoded."""

    rows: Any = field(repr=False)  # a Dataset in arrow format
    unit: str = "row"

    def __iter__(self) -> Iterator[Record]:
        for at in range(len(self.rows)):
            yield _record(at + 1, at, partial(self.read, at))

    def read(self, at: int) -> Any:
        """The row of this index."""
        return self.rows[at].to_pylist()[0]


def open_records(name: str, *, splits: Sequence[str] = ("train",)) -> tuple[Records, Path]:
    """The records of a file, a folder or a hub dataset, and the folder of relative image names.

    Of several splits the first that is there is taken.
    """
    if not name:
        raise FileNotFoundError("expected a file, folder or hub id of training data, found none")
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix in TABLES:
            return _table([path]), path.parent
        return (JsonList(path) if _begins_list(path) else JsonLines(path)), path.parent
    if path.is_dir():
        return _folder(path, splits)
    if re.fullmatch(r"[\w.\-]+/[\w.\-]+", name) and not name.startswith(("./", "../")):
        return _hub(name, splits), Path()
    raise FileNotFoundError(
        f"{name}: expected a file of conversations, a folder or a hub id, found no such file"
    )


def _folder(path: Path, splits: Sequence[str]) -> tuple[Records, Path]:
    from datasets import DatasetDict, load_from_disk  # a second to import

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = load_from_disk(str(path))
        if isinstance(found, DatasetDict):
            found = _split(found, str(path), splits)
        return Table(found.with_format("arrow")), path
    files = sorted(p for p in path.rglob("*") if p.suffix in TABLES and p.is_file())
    for split in splits:
        if of_split := [p for p in files if p.name.startswith(split) or p.parent.name == split]:
            return _table(of_split), path
    if files:
        return _table(files), path
    texts = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
    if len(texts) == 1:
        return open_records(str(texts[0]), splits=splits)
    raise ValueError(
        f"{path}: expected a folder that save_to_disk wrote, one with parquet files or with one "
        f"JSON or JSONL file, found {len(texts)} JSON files; name one of them"
    )


def _table(files: list[Path]) -> Table:
    from datasets import Dataset, concatenate_datasets, disable_progress_bars

    disable_progress_bars()
    try:
        parquet = [str(p) for p in files if p.suffix == ".parquet"]
        parts = [Dataset.from_parquet(parquet)] if parquet else []
        parts += [Dataset.from_file(str(p)) for p in files if p.suffix == ".arrow"]
        return Table(concatenate_datasets(parts).with_format("arrow"))
    except Exception as error:  # pyarrow and datasets raise many classes of their own
        raise ValueError(
            f"{files[0]}: expected a parquet or Arrow file, found a broken one ({cause(error)})"
        ) from error


def _hub(name: str, splits: Sequence[str]) -> Table:
    from datasets import load_dataset

    try:
        found = load_dataset(name)
    except Exception as error:  # the hub's client raises many classes
        raise FileNotFoundError(
            f"{name}: expected a file, a folder or a hub dataset, found none ({cause(error)})"
        ) from error
    return Table(_split(found, name, splits).with_format("arrow"))


def _split(found: Any, name: str, splits: Sequence[str]) -> Any:
    for split in splits:
        if split in found:
            return found[split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise ValueError(
        f"{name}: expected a split called {' or '.join(splits)}, found {', '.join(found)}"
    )


def _begins_list(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip(_BLANK)
    return head.startswith(b"[")


def _mapped(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _elements(whole: mmap.mmap) -> Iterator[tuple[int, int]]:
    depth, start = 0, 0
    for found in _BRACKET.finditer(whole):
        sign = found[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = found.end()
        elif sign in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                if whole[start : found.start()].strip():
                    yield start, found.start()
                if rest := whole[found.end() : found.end() + 200].strip():
                    raise ValueError(
                        f"expected one JSON list, found more behind its end: {rest[:40]!r}"
                    )
                return
        elif sign == b"," and depth == 1:
            yield start, found.start()
            start = found.end()
    raise ValueError("expected one JSON list, found no end of it: the file is cut off")


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, found broken text ({error})") from error


def _record(number: int, at: int, read: Callable[[], object]) -> Record:
    try:
        return Record(number, at, read())
    except ValueError as error:
        return Record(number, at, error)
