"""LLaMA-Factory's sharegpt form and the messages form that it shares with ms-swift.

    {"messages": [{"role": "user", "content": "<image>What is this?"},
                  {"role": "assistant", "content": "A cow."}], "images": ["images/1.jpg"]}
    {"conversations": [{"from": "human", "value": "<image>What is this?"},
                       {"from": "gpt", "value": "A cow."}], "images": ["images/1.jpg"]}

`dataset_info.json` is not needed: keys and names of roles are told from the records.
"""

from __future__ import annotations

from typing import Any

from kvfix.data.training.record import Draft
from kvfix.data.training.turns import draft, read_turns

KEYS = frozenset({"id", "messages", "conversations", "images", "image", "system"})


def fits(row: dict[str, Any]) -> bool:
    """Whether a record is meant to be of this form."""
    return "messages" in row or "conversations" in row


def read(row: dict[str, Any]) -> tuple[Draft, frozenset[str]]:
    """The record, and the keys of its turns that are not read.

    Raises:
        ValueError: What was expected and what was found.
    """
    key = "messages" if "messages" in row else "conversations"
    turns = read_turns(row[key], key)
    images = row.get("images", row.get("image"))
    return draft(turns, images, system=row.get("system")), turns.ignored
