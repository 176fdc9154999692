"""A sheet of an .xlsx file as rows of text: all that result tables of other tools need.

An .xlsx file is a zip of XML parts, of which a small one can unfold into all of the memory: sizes,
tags, rows and cells are bounded before and while openpyxl reads them, and defusedxml (which it uses
where it is installed) refuses entities. Formulas come as the value that was saved with them; of
merged cells the first holds the value.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from kvfix.wording import cause

LARGEST: Final = 2**28  # bytes of all parts together, unpacked
MOST_TAGS: Final = 4_000_000  # of one part; each becomes an object in memory
MOST_ROWS: Final = 1_000_000
MOST_CELLS: Final = 20_000_000  # the empty ones between others included
RATIO: Final = 200  # of unpacked to packed bytes; text and tables stay far below
_SMALL: Final = 2**20  # parts up to this size may be packed as well as they like
_CHUNK: Final = 2**20

# What `zipfile` and openpyxl raise on files that are cut off, encrypted, damaged or something else.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError),
    *(ElementTree.ParseError, KeyError, IndexError, TypeError, AttributeError, ValueError),
)
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # a character that XML cannot hold


class _TooLarge(ValueError):
    """A bound that is exceeded; unlike a library's errors the message is whole."""


def read_sheet(
    path: Path, wanted: Callable[[set[str]], bool] = lambda names: True
) -> list[dict[str, str]]:
    """Rows of a sheet by the names in its first row; empty cells are empty texts.

    Of several sheets the first with the `wanted` columns is taken, or the first of all if none has
    them.
    """
    import openpyxl  # takes half a second, which only spreadsheets need

    try:
        with zipfile.ZipFile(path) as parts:
            _check(parts)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheets = book.worksheets
            chosen = next((s for s in sheets if wanted(set(_names(s).values()))), None)
            return list(_rows(chosen or sheets[0]))  # an IndexError where there is no sheet
        finally:
            book.close()
    except _TooLarge as error:
        raise ValueError(f"{path}: {error}") from error
    except _BROKEN as error:
        first: BaseException = error
        while first.__cause__ is not None:  # openpyxl's own words for it name no cause
            first = first.__cause__
        raise ValueError(
            f"{path}: expected a spreadsheet .xlsx, found one that cannot be read: "
            f"{type(first).__name__}: {cause(first)}"
        ) from error


def _check(parts: zipfile.ZipFile) -> None:
    """Refuse what would fill the memory, by the zip's directory and by a look at each part."""
    listed = parts.infolist()
    if (size := sum(part.file_size for part in listed)) > LARGEST:
        raise _TooLarge(f"expected at most {LARGEST} bytes of unpacked parts, found {size}")
    for part in listed:
        if part.file_size > max(_SMALL, RATIO * part.compress_size):
            raise _TooLarge(
                f"expected {part.filename[:80]} to unpack into at most {RATIO} times its size, "
                f"found {part.file_size} bytes packed into {part.compress_size}"
            )
    for part in listed:
        if part.filename.endswith((".xml", ".rels")):
            tags = 0
            with parts.open(part) as stream:  # never yields more than the directory says
                while chunk := stream.read(_CHUNK):
                    tags += chunk.count(b"<")
            if tags > MOST_TAGS:
                raise _TooLarge(
                    f"expected at most {MOST_TAGS} tags in {part.filename[:80]}, found {tags}"
                )


def _names(sheet: Any) -> dict[int, str]:
    """Column -> name, of the first row."""
    sheet.reset_dimensions()  # what the file says of its own size may be wrong
    for row in sheet.iter_rows():
        return {i: name for i, cell in enumerate(row) if (name := _text(cell))}
    return {}


def _rows(sheet: Any) -> Iterator[dict[str, str]]:
    names = _names(sheet)
    cells = 0
    for number, row in enumerate(sheet.iter_rows(), start=1):
        cells += len(row)
        if number > MOST_ROWS or cells > MOST_CELLS:
            raise _TooLarge(f"expected at most {MOST_ROWS} rows and {MOST_CELLS} cells, found more")
        if number == 1 or not any(cell.value is not None for cell in row):
            continue
        yield {name: _text(row[i]) if i < len(row) else "" for i, name in names.items()}


def _text(cell: Any) -> str:
    """As it would stand in a csv file; an error such as #N/A is empty."""
    value = cell.value
    if value is None or cell.data_type == "e":
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str):
        return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
    return str(value)
