"""Rows of training data, written and read back."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from kvfix.data.training.conversation import Conversation

ASKED = "<image>What is this?"
ANSWER = "A flag."


def encoded(k: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), (40 * k,) * 3).save(out, "PNG")
    return out.getvalue()


def spoken(*turns: tuple[str, Any], keys: tuple[str, str] = ("role", "content")) -> list[dict]:
    return [dict(zip(keys, turn, strict=True)) for turn in turns]


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


FROM = ("from", "value")
LLAVA = {
    "id": "7",
    "image": "p/0.jpg",
    "conversations": spoken(("human", ASKED), ("gpt", ANSWER), keys=FROM),
}
PARTS = {
    "messages": spoken(
        ("user", [{"type": "image"}, {"type": "text", "text": "What is this?"}]),
        ("assistant", [{"type": "text", "text": ANSWER}]),
    ),
    "images": ["p/0.jpg"],
}
PROMPT = {
    "prompt": spoken(("user", "What is this?")),
    "completion": spoken(("assistant", ANSWER)),
    "images": ["p/0.jpg"],
}
