"""A JSON object out of a file or a line, checked, with errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvfix.wording import cause

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
