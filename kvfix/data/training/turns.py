"""Turns as chat formats write them -> messages with a placeholder for each image.

A turn is an object of role and content, or of from and value. Its content is a text with `<image>`
where an image stands, or a list of parts, some of them images. Turns that call tools, or answers
that are no text, are refused: nothing may be trained on that kvfix would print otherwise. Each
function raises a ValueError that says what was expected and found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvfix.data.json_object import list_field
from kvfix.data.training.conversation import PLACEHOLDER, Message
from kvfix.wording import shown

SAID_BY = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TOOLS = ("tool", "function", "observation", "ipython")  # how roles of tool turns begin
_CALLS = ("tool_calls", "function_call", "tool_call_id", "tools")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LEARNED = ("loss", "train", "weight")  # keys that say whether a turn is trained on
_KNOWN = {"role", "content", "from", "value", *_LEARNED}
BEFORE = f"images without {PLACEHOLDER} in the text stand before the first question"
_JOINED = "turns of the user that follow each other are one, a line each"


class Slot(NamedTuple):
    """Where an image stands in the text."""

    cell: Any = None  # the image that the turn itself holds; None: one of the record's
    number: int | None = None  # its number among the record's images; None: the next one


class Turns(NamedTuple):
    """What a record's list of turns says."""

    messages: tuple[Message, ...]
    slots: tuple[Slot, ...]  # one for each placeholder, in order
    ignored: frozenset[str]  # keys that kvfix does not read


class Composed(NamedTuple):
    """A record before its photos are looked for."""

    messages: tuple[Message, ...]  # with a placeholder for each image
    pictures: tuple[Any, ...]  # for each placeholder a name, bytes, or a mapping with one of them
    said: tuple[str, ...]  # what was done to the record that its author should know


def read_turns(value: object, key: str, *, learned: bool = True) -> Turns:
    """A record's turns; `learned`: whether answers are trained on where a turn does not say so."""
    messages: list[Message] = []
    slots: list[Slot] = []
    ignored: set[str] = set()
    for turn in list_field(value, key):
        if not isinstance(turn, dict):
            raise ValueError(f"expected {key} as objects of role and content, found {shown(turn)}")
        role = _role(turn)
        _refuse_calls(turn)
        at = "content" if "content" in turn else "value"
        content, of_turn = _content(turn.get(at), at, ignored)
        if role != "user" and PLACEHOLDER in content:
            raise ValueError(
                f"expected {PLACEHOLDER} in the user's messages only, found it in one of {role}"
            )
        slots += of_turn
        trained = role != "assistant" or _is_learned(turn, learned)
        messages.append(Message(role, content, trained))
        ignored |= {f"{key}.{k}" for k, v in turn.items() if k not in _KNOWN and v is not None}
    return Turns(tuple(messages), tuple(slots), frozenset(ignored))


def compose(turns: Turns, images: object, *, system: object = None) -> Composed:
    """Put turns, the record's own images (one, a list or None) and its system text together."""
    said = []
    messages = list(turns.messages)
    if system is not None and system != "":
        if not isinstance(system, str):
            raise ValueError(f"expected system, a text, found {shown(system)}")
        messages.insert(0, Message("system", system))
    messages, joined = _in_order(messages)
    if joined:
        said.append(_JOINED)
    column = images if isinstance(images, list) else [] if images in (None, "") else [images]
    slots: Sequence[Slot] = turns.slots
    if column and not slots:
        first = next(i for i, m in enumerate(messages) if m.role == "user")
        marks = PLACEHOLDER * len(column)
        content = f"{marks}\n{messages[first].content}" if messages[first].content else marks
        messages[first] = messages[first]._replace(content=content)
        slots = [Slot()] * len(column)
        said.append(BEFORE)
    for message in messages:
        if not message.content.strip() and message.role != "system":
            raise ValueError(
                f"expected content, a text, in every turn, found an empty one of {message.role}"
            )
    return Composed(tuple(messages), _placed(slots, column), tuple(said))


def _role(turn: dict[str, Any]) -> str:
    found = turn.get("role", turn.get("from"))
    name = found.lower() if isinstance(found, str) else ""
    if name.startswith(_TOOLS):
        raise ValueError(
            f"expected turns of {_names()}, found one of {shown(found)}: tools are not trained"
        )
    if name not in SAID_BY:
        keys = "" if found is not None else f" among the keys {shown(sorted(map(str, turn)))}"
        raise ValueError(f"expected a role of {_names()}, found {shown(found)}{keys}")
    return SAID_BY[name]


def _names() -> str:
    return ", ".join(SAID_BY)


def _refuse_calls(turn: dict[str, Any]) -> None:
    for name in _CALLS:
        if turn.get(name):
            raise ValueError(
                f"expected turns without {name}, found {shown(turn[name])}: tools are not trained"
            )
    for name in _THOUGHTS:
        if turn.get(name):
            raise ValueError(
                f"expected the whole answer in its content, found {name}: put it there, or drop it"
            )


def _is_learned(turn: dict[str, Any], otherwise: bool) -> bool:
    for name in _LEARNED:
        if (value := turn.get(name)) is not None:
            if value not in (0, 1):
                raise ValueError(
                    f"expected {name} of a turn to be true or false, found {shown(value)}: no turn "
                    "is trained by half"
                )
            return bool(value)
    return otherwise


def _content(value: object, key: str, ignored: set[str]) -> tuple[str, list[Slot]]:
    if value is None:
        return "", []
    if isinstance(value, str):
        return value, [Slot()] * value.count(PLACEHOLDER)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"expected {key}, a text or a list of parts, found {shown(value)}")
    texts: list[str] = []
    slots: list[Slot] = []
    for part in value:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        text, of_part = _part(part, ignored)
        texts.append(text)
        slots += of_part
    return "".join(texts), slots


def _part(part: object, ignored: set[str]) -> tuple[str, list[Slot]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image", "image_url", None):
        raise ValueError(f"expected parts of type text or image, found {shown(kind or part)}")
    text = part.get("text")
    if kind == "text" or (kind is None and isinstance(text, str)):
        if not isinstance(text, str):
            raise ValueError(f"expected text, a text, in a part of type text, found {shown(text)}")
        return text, [Slot()] * text.count(PLACEHOLDER)
    if kind is None and "image" not in part and "image_url" not in part:
        raise ValueError(f"expected parts of type text or image, found {shown(part)}")
    index = part.get("index")
    if index is not None and (type(index) is not int or index < 0):
        raise ValueError(f"expected index of an image, a number from 0, found {shown(index)}")
    held = {k: v for k, v in part.items() if k not in ("type", "text", "index") and v is not None}
    cells = [
        held.pop(k) for k in ("image", "image_url", "url", "path", "bytes", "base64") if k in held
    ]
    ignored |= {f"an image's {k}" for k in held}
    if not cells:
        return PLACEHOLDER, [Slot(number=index)]
    return PLACEHOLDER, [Slot(cells[0])]


def _in_order(messages: list[Message]) -> tuple[list[Message], bool]:
    """System, then user and assistant in turn; whether turns of the user were joined for it."""
    out: list[Message] = []
    joined = False
    for message in messages:
        before = out[-1].role if out else ""
        if message.role == "system":
            if not message.content.strip():
                continue
            if out:
                raise ValueError("expected one system turn, at the start, found another one")
        elif message.role == "assistant" and before in ("", "system", "assistant"):
            place = "at the start" if before != "assistant" else "after another one"
            raise ValueError(
                f"expected a message of the user before each of the assistant's, found one {place}"
            )
        if message.role == before == "user":
            joined = True
            content = "\n".join(filter(None, (out[-1].content, message.content)))
            out[-1] = Message("user", content)
            continue
        out.append(message)
    if not out or out[-1].role != "assistant":
        last = out[-1].role if out else "none"
        raise ValueError(f"expected messages that end with the assistant's, found {last}")
    if not any(m.learned for m in out if m.role == "assistant"):
        raise ValueError("expected an answer to train on, found none: all say loss false")
    return out, joined


def _placed(slots: Sequence[Slot], column: list[Any]) -> tuple[Any, ...]:
    following = [slot for slot in slots if slot.cell is None and slot.number is None]
    numbered = {slot.number for slot in slots if slot.number is not None}
    if numbered and (following or numbered != set(range(len(column)))):
        raise ValueError(
            f"expected parts of type image with an index below {len(column)}, all of them used, "
            f"found {shown(sorted(n for n in numbered if n is not None))}"
        )
    if not numbered and len(following) != len(column):
        raise ValueError(
            f"expected one {PLACEHOLDER} for each of {len(column)} images, found {len(following)}"
        )
    rest = iter(column)
    placed = []
    for slot in slots:
        own = next(rest) if slot.cell is None and slot.number is None else slot.cell
        placed.append(own if slot.number is None else column[slot.number])
    return tuple(placed)
