"""The table of forms in which people have training data, and how a record of any of them is read.

Every record is told apart by its own keys, so that a file may mix forms. What would change the text
that is trained on, and what kvfix cannot print, is refused in words; keys that say nothing to it
are named and ignored.

LLaMA-Factory's `dataset_info.json` is not needed. LLaVA's own scripts move `<image>` to the front
of its turn; here it stays where it is. A prompt of TRL's is not trained on, as in TRL. In kvfix's
own form every `<image>` stands for one entry of `images`, in order, and `sub_task` names the kind
of question; for `masks` and `points` see `regions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from kvfix.data.json_object import list_field, text_field
from kvfix.data.training.conversation import Conversation
from kvfix.data.training.photos import Places
from kvfix.data.training.regions import check_regions, read_masks, read_points
from kvfix.data.training.turns import Turns, compose, read_turns
from kvfix.wording import shown

RawRecord = dict[str, Any]
TREE = """\
FILE is a JSONL file, a JSON list, a parquet or Arrow file; or a folder of those or of
save_to_disk, or the id of a hub dataset. Records, id optional, of these forms (their names are
printed) and any mix of them:
  kvfix         {"id", "images": [..], "messages": [{"role", "content": "<image>.."}, ..],
                 "masks": [..], "points": [..], "sub_task"}; the last three optional
  LLaVA         {"image": NAME or [..], "conversations": [{"from", "value": "<image>.."}, ..]}
  LLaMA-Factory {"images": [..], "conversations": [{"from", "value"}, ..], "system"}
  and ms-swift  {"images": [..], "messages": [{"role", "content", "loss"}, ..], "system"}
  ms-swift      {"images": [..], "query", "response", "history": [[.., ..], ..], "system"}
  TRL           {"images": [..], "messages": [{"role", "content": [{"type": "image"},
                 {"type": "text", "text"}, ..]}, ..]}
                {"images": [..], "prompt": [..], "completion": [..]}
An image is a file's name, absolute or below the folder of FILE (images=DIR: another one), a data
URI, or an object of path or bytes; nothing is fetched from a network.
"""
EXPECTED = (
    "expected messages (of role and content), conversations (of from and value), query and "
    "response, or prompt and completion"
)
_HINTS = {  # a key that tells what else a record is, and what to do
    "instruction": "an alpaca record: put instruction and input into a message of the user, output "
    "into one of the assistant",
    "chosen": "a preference pair: give the chosen answer as messages",
    "texts": "pairs of user and assistant under texts: give them as messages",
    "question": "a question: `kvfix eval --data mcq=FILE` asks it; training needs messages",
}
_OTHER_MEDIA = ("videos", "video", "audios", "audio")
_PREFERENCE = ("rejected_response", "rejected_messages", "rejected")
_GROUNDING = ("<bbox>", "<ref-object>")
_SPOKEN = ("messages", "conversations", "conversation", "history", "prompt", "completion")


def _has_parts(row: RawRecord) -> bool:
    messages = row.get("messages")
    return isinstance(messages, list) and any(
        isinstance(m, dict) and isinstance(m.get("content"), list) for m in messages
    )


def _is_own(row: RawRecord) -> bool:
    messages = row.get("messages")
    plain = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    )
    return "messages" in row and (
        bool({"masks", "points", "sub_task"} & row.keys()) or ("id" in row and plain)
    )


def _listed_turns(row: RawRecord) -> Turns:
    key = "messages" if "messages" in row else "conversations"
    return read_turns(row[key], key)


def _trl_turns(row: RawRecord) -> Turns:
    if "messages" in row:
        return _listed_turns(row)
    asked = read_turns(_spoken(row["prompt"], "user"), "prompt", learned=False)
    answered = read_turns(_spoken(row["completion"], "assistant"), "completion")
    return Turns(
        asked.messages + answered.messages,
        asked.slots + answered.slots,
        asked.ignored | answered.ignored,
    )


def _spoken(value: object, role: str) -> object:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _swift_turns(row: RawRecord) -> Turns:
    """A query, its response and what was said before; or pairs of turns under `conversation`."""
    if "conversation" in row:
        pairs = [_named_pair(turn) for turn in list_field(row["conversation"], "conversation")]
    else:
        history = list_field(row.get("history") or [], "history")
        pairs = [*map(_pair, history), (row["query"], row["response"])]
    turns = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    return read_turns(turns, "query and response")


def _named_pair(turn: object) -> tuple[Any, Any]:
    if not isinstance(turn, dict) or turn.keys() != {"human", "assistant"}:
        raise ValueError(
            f"expected conversation as objects of human and assistant, found {shown(turn)}"
        )
    return turn["human"], turn["assistant"]


def _pair(turn: object) -> tuple[Any, Any]:
    if not isinstance(turn, list) or len(turn) != 2:
        raise ValueError(f"expected history as pairs [query, response], found {shown(turn)}")
    return turn[0], turn[1]


class Form(NamedTuple):
    """One row of the table."""

    name: str  # as it is printed
    fits: Callable[[RawRecord], bool]  # whether a record is meant to be of this form
    keys: frozenset[str]  # those of a record that are read
    turns: Callable[[RawRecord], Turns] = _listed_turns  # reads them out of a record


_IMAGES = {"id", "image", "images"}
FORMS = (  # the first that fits
    Form(
        "TRL",
        lambda row: _has_parts(row) or {"prompt", "completion"} <= row.keys(),
        frozenset({*_IMAGES, "messages", "prompt", "completion"}),
        _trl_turns,
    ),
    Form("kvfix", _is_own, frozenset({"id", "images", "messages", "masks", "points", "sub_task"})),
    Form(
        "LLaVA",
        lambda row: "conversations" in row and "images" not in row,
        frozenset({"id", "image", "conversations", "system"}),
    ),
    Form(
        "ms-swift query and response",
        lambda row: {"query", "response"} <= row.keys() or "conversation" in row,
        frozenset({*_IMAGES, "query", "response", "history", "system", "conversation"}),
        _swift_turns,
    ),
    Form(
        "LLaMA-Factory and ms-swift",
        lambda row: "messages" in row or "conversations" in row,
        frozenset({*_IMAGES, "messages", "conversations", "system"}),
    ),
)


class ReadRecord(NamedTuple):
    """A record that can be trained on."""

    conversation: Conversation  # its id is empty where the record has none
    form: str
    ignored: frozenset[str]  # keys that were not read
    said: tuple[str, ...]  # what was done to it that its author should know


def read_record(row: object, places: Places, *, look: bool) -> ReadRecord:
    """Tell the form of a record and read it; `look`: check its regions against the photos, too."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {shown(row)}")
    row = {key: value for key, value in row.items() if value is not None}
    for key in _SPOKEN:  # tables often hold them as JSON
        row |= {key: _unpacked(row[key])} if key in row else {}
    form = next((form for form in FORMS if form.fits(row)), None)
    if form is None:
        raise ValueError(_none_fits(row))
    _refuse(row)
    mine = {key: value for key, value in row.items() if key in form.keys}
    turns = form.turns(mine)
    composed = compose(turns, mine.get("images", mine.get("image")), system=mine.get("system"))
    if "objects" in row and any(t in m.content for m in composed.messages for t in _GROUNDING):
        raise ValueError(
            f"expected text without {' and '.join(_GROUNDING)}, found them: every model writes "
            "places in its own form, so write them into the text"
        )
    photos = tuple(places.photo(cell) for cell in composed.pictures)
    masks = read_masks(mine.get("masks", []), len(photos))
    points = read_points(mine.get("points", []), len(photos))
    if look:
        check_regions(photos, masks, points)
    sub_task = text_field(mine["sub_task"], "sub_task") if "sub_task" in mine else ""
    return ReadRecord(
        Conversation(_id(row.get("id")), photos, composed.messages, masks, points, sub_task),
        form.name,
        frozenset(map(str, row.keys() - form.keys)) | turns.ignored,
        composed.said,
    )


def pictures(row: object) -> list[Any]:
    """The first picture that a record names itself, in whatever form; for `Places`."""
    found = row.get("images", row.get("image")) if isinstance(row, dict) else None
    cells = found if isinstance(found, list) else [found]
    return [cell.get("path") if isinstance(cell, dict) else cell for cell in cells[:1]]


def _id(value: object) -> str:
    if value is None or value == "":
        return ""
    if type(value) is int or isinstance(value, float):
        return str(value)
    return text_field(value, "id")[:200]


def _unpacked(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _refuse(row: RawRecord) -> None:
    """What would be trained otherwise than its author means."""
    for key in _OTHER_MEDIA:
        if row.get(key):
            raise ValueError(f"expected images and text, found {key}")
    if row.get("tools") and row["tools"] != "[]":
        raise ValueError("expected a record without tools, found some: tools are not trained")
    for key in _PREFERENCE:
        if row.get(key):
            raise ValueError(
                f"expected one answer, found {key} beside it: kvfix trains no preferences; leave "
                "it out to train on the answer"
            )
    if row.get("label") is False:
        raise ValueError("expected an answer to learn, found label false: kvfix unlearns nothing")


def _none_fits(row: RawRecord) -> str:
    hint = next((f", {hint}" for key, hint in _HINTS.items() if key in row), "")
    keys = ", ".join(sorted(shown(str(key)).strip("'\"") for key in row)[:12]) or "none"
    return f"{EXPECTED}, found the keys {keys}{hint}"
