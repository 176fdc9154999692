r"""LLaVA's form, which Qwen's fine-tuning scripts read, too: conversations of from and value.

    {"id": "1", "image": "coco/1.jpg",
     "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                       {"from": "gpt", "value": "A cow."}]}

`image` is a name or a list of names, and is left out of records that are text alone. LLaVA's own
scripts move `<image>` to the front of its turn; here it stays where it is.
"""

from __future__ import annotations

from typing import Any

from kvfix.data.training.record import Draft
from kvfix.data.training.turns import draft, read_turns

KEYS = frozenset({"id", "image", "conversations", "system"})


def fits(row: dict[str, Any]) -> bool:
    """Whether a record is meant to be of this form."""
    return "conversations" in row and "images" not in row


def read(row: dict[str, Any]) -> tuple[Draft, frozenset[str]]:
    """The record, and the keys of its turns that are not read.

    Raises:
        ValueError: What was expected and what was found.
    """
    turns = read_turns(row["conversations"], "conversations")
    return draft(turns, row.get("image"), system=row.get("system")), turns.ignored
