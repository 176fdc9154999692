r"""kvfix's own form: messages about photos, some with masks or matching points.

    {"id": "a1", "images": ["images/1.jpg"],
     "messages": [{"role": "user", "content": "<image>\nWhat is this?"},
                  {"role": "assistant", "content": "A cow."}],
     "masks": [{"image": 0, "label": "cow", "size": [H, W], "counts": "..."}],
     "points": [{"image_a": 0, "image_b": 1, "a": [x, y], "b": [x, y]}]}

`sub_task` names the kind of question. Every `<image>` in a user's message stands for one entry of
`images`, in order. Masks are COCO run lengths of the photo as it lies on disk, points are in its
pixels, pixel centres at integers. Where EXIF turns the photo, they are turned with it (a mask of
the turned photo's size is taken as it is).
"""

from __future__ import annotations

from typing import Any

from kvfix.data.training.record import Draft
from kvfix.data.training.turns import draft, read_turns

KEYS = frozenset({"id", "sub_task", "images", "messages", "masks", "points"})
_ONLY_HERE = {"masks", "points", "sub_task"}


def fits(row: dict[str, Any]) -> bool:
    """Whether a record is meant to be of this form."""
    messages = row.get("messages")
    if "messages" not in row:
        return False
    plain = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    )
    return bool(_ONLY_HERE & row.keys()) or ("id" in row and plain)


def read(row: dict[str, Any]) -> tuple[Draft, frozenset[str]]:
    """The record, and the keys of its turns that are not read.

    Raises:
        ValueError: What was expected and what was found.
    """
    turns = read_turns(row["messages"], "messages")
    return draft(turns, row.get("images")), turns.ignored
