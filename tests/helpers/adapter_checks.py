"""How an adapter's effect and its refusal are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest


def refusal(load, name: str, folder: Path, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(name, adapter=str(folder), **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text
