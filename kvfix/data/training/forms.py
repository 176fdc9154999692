"""The table of forms in which people have training data, and how a record is told to be of one.

Every record is told apart by its own keys, so that a file may mix forms. What would change the text
that is trained on, and what kvfix cannot print, is refused in words; keys that say nothing to it
are named and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from kvfix.data.training import llamafactory, llava, own, swift, trl
from kvfix.data.training.photos import Photos, Places
from kvfix.data.training.record import Conversation, Draft, text
from kvfix.data.training.regions import check_regions, read_masks, read_points
from kvfix.wording import shown


class Form(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is printed.
        fits: Whether a record is meant to be of this form.
        read: The record in kvfix's words, and keys of its turns that are not read.
        keys: Keys of a record that are read.
    """

    name: str
    fits: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], tuple[Draft, frozenset[str]]]
    keys: frozenset[str]


FORMS = (  # the first that fits
    Form("TRL", trl.fits, trl.read, trl.KEYS),
    Form("kvfix", own.fits, own.read, own.KEYS),
    Form("LLaVA", llava.fits, llava.read, llava.KEYS),
    Form("ms-swift query and response", swift.fits, swift.read, swift.KEYS),
    Form("LLaMA-Factory and ms-swift", llamafactory.fits, llamafactory.read, llamafactory.KEYS),
)
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


class Read(NamedTuple):
    """A record that can be trained on.

    Attributes:
        conversation: Its id is empty where the record has none.
        form: Name of its form.
        ignored: Keys that were not read.
        said: What was done to it that its author should know.
    """

    conversation: Conversation
    form: str
    ignored: frozenset[str]
    said: tuple[str, ...]


def read_record(row: object, places: Places, *, look: bool) -> Read:
    """Tell the form of a record and read it.

    Args:
        row: As JSON or a table has it.
        places: Where names of images lead.
        look: Whether masks and points are checked against their photos.

    Raises:
        ValueError: What was expected and what was found.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {shown(row)}")
    row = {key: value for key, value in row.items() if value is not None}
    for key in _SPOKEN:  # tables often hold them as JSON
        row |= {key: _unpacked(row[key])} if key in row else {}
    form = next((form for form in FORMS if form.fits(row)), None)
    if form is None:
        raise ValueError(_none_fits(row))
    _refuse(row)
    draft, of_turns = form.read(row)
    if "objects" in row and any(t in m.content for m in draft.messages for t in _GROUNDING):
        raise ValueError(
            f"expected text without {' and '.join(_GROUNDING)}, found them: every model writes "
            "places in its own form, so write them into the text"
        )
    photos = Photos(tuple(places.photo(cell) for cell in draft.pictures))
    mine = form.keys is own.KEYS
    masks = read_masks(row.get("masks", []), len(photos)) if mine else ()
    points = read_points(row.get("points", []), len(photos)) if mine else ()
    if look:
        check_regions(photos, masks, points)
    sub_task = text(row["sub_task"], "sub_task") if mine and "sub_task" in row else ""
    return Read(
        Conversation(_id(row.get("id")), photos, draft.messages, masks, points, sub_task),
        form.name,
        frozenset(map(str, row.keys() - form.keys)) | of_turns,
        draft.said,
    )


def pictures(row: object) -> list[Any]:
    """The first few pictures that a record names itself, in whatever form; for `Places`."""
    found = row.get("images", row.get("image")) if isinstance(row, dict) else None
    cells = found if isinstance(found, list) else [found]
    return [cell.get("path") if isinstance(cell, dict) else cell for cell in cells[:1]]


def _id(value: object) -> str:
    if value is None or value == "":
        return ""
    if type(value) is int or isinstance(value, float):
        return str(value)
    return text(value, "id")[:200]


def _unpacked(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _refuse(row: dict[str, Any]) -> None:
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


def _none_fits(row: dict[str, Any]) -> str:
    hint = next((f", {hint}" for key, hint in _HINTS.items() if key in row), "")
    keys = ", ".join(sorted(shown(str(key)).strip("'\"") for key in row)[:12]) or "none"
    return f"{EXPECTED}, found the keys {keys}{hint}"
