"""Files of predictions as text, JSON and tables, whatever wrote them, with errors in one line."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvfix.wording import cause, shown

_LARGEST_CELL = 2**27  # characters of a csv cell: VLMEvalKit can leave images in
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = ",;\t|"


def read_text(path: Path) -> str:
    """A file as text: UTF-8, or UTF-16 or 32 as Windows programs write it, by its first bytes."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected a file, found none") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:2]:  # no mark, and JSON and tables start in ASCII
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 or UTF-16 text, found {error}") from error


def parse_json(text: str, where: str) -> Any:
    """JSON whose objects do not hold a key twice with different values."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out and out[key] != value:
                raise _Twice(f"{where}: expected {shown(key)} once, found it again and different")
            out[key] = value
        return out

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _Twice:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, found {cause(error)}") from error


class _Twice(ValueError):
    """A key twice; unlike json's own errors the message is whole."""


def read_table(file: Path, wanted: Callable[[set[str]], bool]) -> list[dict[str, str]]:
    """Rows of a csv file by the names of its header.

    Fields are parted by commas, semicolons, tabs or bars: by the first that gives a header with the
    `wanted` columns, and by that of the file's suffix if none does.
    """
    text = read_text(file)
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    order = [usual, *(d for d in _DELIMITERS if d != usual)]
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        headers = {d: csv.DictReader(io.StringIO(text), delimiter=d).fieldnames for d in order}
        chosen = next((d for d in order if wanted(set(headers[d] or ()))), usual)
        return list(csv.DictReader(io.StringIO(text), delimiter=chosen))
    except csv.Error as error:
        raise ValueError(f"{file}: expected a table with a header, found {error}") from error
    finally:
        csv.field_size_limit(before)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return shown(value)
