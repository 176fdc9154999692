"""What a terminal of 80 columns shows, held against what a wide one shows."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any


def rendered(item: Any, width: int = 80) -> str:
    """A table or text as a console of that width prints it."""
    from rich.console import Console

    out = io.StringIO()
    Console(width=width, file=out, color_system=None, legacy_windows=False).print(item)
    return out.getvalue()


def fits(item: Any, width: int = 80) -> str:
    """The text at that width, in which every word of the wide one stands unbroken."""
    narrow, wide = rendered(item, width), rendered(item, 1000)
    assert max(map(len, narrow.splitlines())) <= width, narrow
    lost = Counter(_words(wide)) - Counter(_words(narrow))
    assert not lost, (lost, narrow)
    return narrow


def _words(text: str) -> list[str]:
    return [word for word in text.split() if set(word) != {"─"}]
