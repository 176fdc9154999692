"""ms-swift's older forms: a query, its response and what was said before; or pairs of turns.

    {"system": "...", "query": "<image>What is this?", "response": "A cow.",
     "history": [["Hello.", "Hi."]], "images": ["images/1.jpg"]}
    {"conversation": [{"human": "<image>What is this?", "assistant": "A cow."}], "images": [...]}

Its lines of `messages` are read in `llamafactory`, which has the same form.
"""

from __future__ import annotations

from typing import Any

from kvfix.data.training.record import Draft, listed
from kvfix.data.training.turns import draft, read_turns
from kvfix.wording import shown

KEYS = frozenset(
    {"id", "query", "response", "history", "system", "images", "image", "conversation"}
)


def fits(row: dict[str, Any]) -> bool:
    """Whether a record is meant to be of this form."""
    return {"query", "response"} <= row.keys() or "conversation" in row


def read(row: dict[str, Any]) -> tuple[Draft, frozenset[str]]:
    """The record; nothing of its turns is left unread.

    Raises:
        ValueError: What was expected and what was found.
    """
    if "conversation" in row:
        pairs = [_pair(turn) for turn in listed(row["conversation"], "conversation")]
    else:
        said = listed(row.get("history") or [], "history")
        pairs = [_two(turn) for turn in said] + [(row["query"], row["response"])]
    spoken = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    turns = read_turns(spoken, "query and response")
    images = row.get("images", row.get("image"))
    return draft(turns, images, system=row.get("system")), turns.ignored


def _pair(turn: object) -> tuple[Any, Any]:
    if not isinstance(turn, dict) or turn.keys() != {"human", "assistant"}:
        raise ValueError(
            f"expected conversation as objects of human and assistant, found {shown(turn)}"
        )
    return turn["human"], turn["assistant"]


def _two(turn: object) -> tuple[Any, Any]:
    if not isinstance(turn, list) or len(turn) != 2:
        raise ValueError(f"expected history as pairs [query, response], found {shown(turn)}")
    return turn[0], turn[1]
