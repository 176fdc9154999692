"""The first sheet of an .xlsx file as rows of text: all that VLMEvalKit's result tables need.

An .xlsx file is a zip of XML parts (ECMA-376): a sheet's cells hold numbers, texts, or indices into
a list of shared texts. Parts are read in memory, one at a time and up to a size; nothing is
unpacked. Formulas come as the value that was saved with them.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_LARGEST_PART = 2**28  # bytes of one XML part
# What `zipfile` and the parser raise on files that are cut off, encrypted or something else.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, RuntimeError, EOFError),
    *(ElementTree.ParseError, KeyError, IndexError),
)
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # a character that XML cannot hold
_CELL = re.compile(r"([A-Z]{1,3})[0-9]+")


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Rows of the first sheet by the names in its first row; empty cells are empty texts.

    Raises:
        ValueError: not such a file.
        OSError: no such file.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            shared = _shared_texts(parts)
            table = list(_rows(_parse(parts, _first_sheet(parts)), shared))
    except _BROKEN as error:
        raise ValueError(f"{path}: expected a spreadsheet .xlsx, found {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not table:
        return []
    names = {column: name for column, name in table[0].items() if name}
    return [{name: row.get(c, "") for c, name in names.items()} for row in table[1:] if row]


def _parse(parts: zipfile.ZipFile, name: str) -> ElementTree.Element:
    size = parts.getinfo(name).file_size
    if size > _LARGEST_PART:
        raise ValueError(f"expected at most {_LARGEST_PART} bytes in {name}, found {size}")
    data = parts.read(name)
    if b"<!DOCTYPE" in data:  # no spreadsheet has one; entities could fill memory
        raise ValueError(f"expected a sheet without document type, found one in {name}")
    return ElementTree.fromstring(data)


def _first_sheet(parts: zipfile.ZipFile) -> str:
    """The part that holds the first sheet of the workbook."""
    sheets = _parse(parts, "xl/workbook.xml").findall(f"{_MAIN}sheets/{_MAIN}sheet")
    wanted = sheets[0].get(_RELATION)
    for relation in _parse(parts, "xl/_rels/workbook.xml.rels"):
        if relation.get("Id") == wanted:
            target = relation.get("Target", "")
            return target.lstrip("/") if target.startswith("/") else f"xl/{target}"
    raise ValueError(f"expected the workbook to name its first sheet's part, found {wanted!r}")


def _shared_texts(parts: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in parts.namelist():
        return []
    return [_text(item) for item in _parse(parts, "xl/sharedStrings.xml").findall(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    """The text of an item: its own, or that of its formatted runs."""
    found = [*item.findall(f"{_MAIN}t"), *item.findall(f"{_MAIN}r/{_MAIN}t")]
    return _plain("".join(t.text or "" for t in found))


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def _rows(sheet: ElementTree.Element, shared: list[str]) -> Iterator[dict[int, str]]:
    """Texts by column, a row after the other."""
    for row in sheet.iterfind(f"{_MAIN}sheetData/{_MAIN}row"):
        found: dict[int, str] = {}
        column = -1
        for cell in row.iterfind(f"{_MAIN}c"):
            place = _CELL.fullmatch(cell.get("r", ""))
            column = column + 1 if place is None else _column(place[1])
            if value := _value(cell, shared):
                found[column] = value
        yield found


def _column(letters: str) -> int:
    """A is 0, Z is 25, AA is 26."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find(f"{_MAIN}is")
        return "" if inline is None else _text(inline)
    value = cell.findtext(f"{_MAIN}v") or ""
    if kind == "s":
        return shared[int(value)]
    return _plain(value) if kind == "str" else "" if kind == "e" else value
