"""TRL's and transformers' forms: content as a list of parts; a prompt and its completion.

    {"images": ["images/1.jpg"],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cow."}]}]}
    {"images": ["images/1.jpg"], "prompt": [{"role": "user", "content": "Hm?"}],
     "completion": [{"role": "assistant", "content": "A cow."}]}

A part may hold its image itself (`image`, `path`, `url`, `image_url`). Of a prompt nothing is
trained, as in TRL.
"""

from __future__ import annotations

from typing import Any

from kvfix.data.training.record import Draft
from kvfix.data.training.turns import Turns, draft, read_turns

KEYS = frozenset({"id", "messages", "prompt", "completion", "images", "image"})


def fits(row: dict[str, Any]) -> bool:
    """Whether a record is meant to be of this form."""
    messages = row.get("messages")
    parts = isinstance(messages, list) and any(
        isinstance(m, dict) and isinstance(m.get("content"), list) for m in messages
    )
    return parts or {"prompt", "completion"} <= row.keys()


def read(row: dict[str, Any]) -> tuple[Draft, frozenset[str]]:
    """The record, and the keys of its turns that are not read.

    Raises:
        ValueError: What was expected and what was found.
    """
    if "messages" in row:
        turns = read_turns(row["messages"], "messages")
    else:
        asked = read_turns(_spoken(row["prompt"], "user"), "prompt", learned=False)
        answered = read_turns(_spoken(row["completion"], "assistant"), "completion")
        turns = Turns(
            asked.messages + answered.messages,
            asked.slots + answered.slots,
            asked.ignored | answered.ignored,
        )
    return draft(turns, row.get("images", row.get("image"))), turns.ignored


def _spoken(value: object, role: str) -> object:
    """A plain text is one turn."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value
