"""A JSON object out of a file or a line, and its fields, checked, with errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvfix.wording import cause, shown

LINE = "one JSON object a line"  # what a file of lines is expected to hold


def json_object(
    written: str | bytes, where: str | Path, *, expected: str = "JSON"
) -> dict[str, Any]:
    """What is written as a JSON object; anything else is a ValueError that begins with `where`."""
    try:
        found = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected {expected}, found {cause(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def text_field(value: object, key: str) -> str:
    """The value, or a ValueError if it is no text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected {key}, a text, found {shown(value)}")
    return value


def list_field(value: object, key: str) -> list[Any]:
    """The value, or a ValueError if it is no list."""
    if not isinstance(value, list):
        raise ValueError(f"expected {key}, a list, found {shown(value)}")
    return value
