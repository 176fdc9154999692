r"""Training data as JSON lines: messages about photos, some with masks or matching points.

    {"id": "a1", "images": ["images/1.jpg"],
     "messages": [{"role": "user", "content": "<image>\nWhat is this?"},
                  {"role": "assistant", "content": "A cow."}],
     "masks": [{"image": 0, "label": "cow", "size": [H, W], "counts": "..."}],
     "points": [{"image_a": 0, "image_b": 1, "a": [x, y], "b": [x, y]}]}

`sub_task` names the kind of question; `sub_task`, `masks` and `points` may be left out. Every
`<image>` in a user's message stands for one entry of `images`, in order. Masks are COCO run lengths
of the photo as it lies on disk, points are in its pixels, pixel centres at integers. Where EXIF
turns the photo, they are turned with it (a mask of the turned photo's size is taken as it is).

Every line is checked when the file is opened. Bad lines are left out and listed; more than 5 % of
them are an error. Memory holds an offset and an id a line; lines, photos and masks are read on
access.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from kvfix.data.files import LazySequence, image_size, read_photo
from kvfix.data.pictures import read_header
from kvfix.data.rle import check_rle, decode_rle
from kvfix.data.units import BadUnit
from kvfix.wording import shown

PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")
MOST_BAD = 0.05  # share of lines that may be bad
_KEYS = {"id", "sub_task", "images", "messages", "masks", "points"}
_SHOWN = 5  # bad lines that an error quotes


class Message(NamedTuple):
    """One turn."""

    role: str  # system, user or assistant
    content: str


class Match(NamedTuple):
    """Two points that show the same thing."""

    image_a: int  # index into the conversation's images
    image_b: int
    a: tuple[float, float]  # x, y in pixels of image_a
    b: tuple[float, float]


@dataclass(frozen=True)
class RleMask:
    """The pixels of one thing on one photo."""

    image: int  # index into the conversation's images
    label: str
    size: tuple[int, int]  # height, width of the photo
    counts: str | tuple[int, ...] = field(repr=False)

    def decode(self) -> np.ndarray:
        """Uint8 (height, width), 0 or 1."""
        return decode_rle(self.size, self.counts)


@dataclass(frozen=True)
class Conversation:
    """One line of the file."""

    id: str
    images: LazySequence[Image.Image]  # RGB, decoded on access
    messages: tuple[Message, ...]
    masks: tuple[RleMask, ...] = ()
    points: tuple[Match, ...] = ()
    sub_task: str = ""

    def upright_mask(self, mask: RleMask) -> np.ndarray:
        """The mask on its photo as `images` gives it; uint8 (height, width), 0 or 1."""
        decoded_HW = mask.decode()
        return read_header(self.images.paths[mask.image]).mask(decoded_HW)

    def upright_points(self, image: int, points: Sequence[tuple[float, float]]) -> np.ndarray:
        """Points of a photo on it as `images` gives it; float64 (K, 2)."""
        return read_header(self.images.paths[image]).points(np.array(points, dtype=np.float64))


class BadLine(NamedTuple):
    """A line that was left out."""

    number: int  # from 1
    why: str

    def __str__(self) -> str:
        """Such as `line 7: expected ..., found ...`."""
        return f"line {self.number}: {self.why}"


@dataclass(frozen=True)
class Conversations(Sequence[Conversation]):
    """The good lines of a file, each read and parsed on access.

    Args:
        path: the file.
        root: folder that image names are relative to.
        ids: of the good lines, in order.
        offsets: where each of them starts, in bytes.
        bad: the lines left out.
    """

    path: Path
    root: Path
    ids: tuple[str, ...] = field(repr=False)
    offsets: np.ndarray = field(repr=False, compare=False)  # int64
    bad: tuple[BadLine, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | Conversations:
        if isinstance(index, slice):
            return Conversations(
                self.path, self.root, self.ids[index], self.offsets[index], self.bad
            )
        name = self.ids[index]
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            raw = file.readline()
        try:
            found = _parse(raw, self.root)
        except ValueError as error:
            raise BadUnit(f"{self.path}: {name}: {error}; the file was changed") from error
        if found.id != name:
            raise BadUnit(
                f"{self.path}: expected the line of {name}, found {found.id}; the file was changed"
            )
        return found


def read_conversations(path: Path | str, *, images: Path | str | None = None) -> Conversations:
    """Open and check a JSONL file of conversations; decodes no photo.

    Args:
        path: the file.
        images: folder that image names are relative to; None for the file's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no good line, or more than 5 % bad ones; the message quotes the first of them.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected a JSONL file of conversations, found {found}")
    root = path.parent if images is None else Path(images)
    first: dict[str, int] = {}  # id -> line
    offsets: list[int] = []
    bad: list[BadLine] = []
    for number, offset, raw in _lines(path):
        try:
            conversation = _parse(raw, root)
            _check_photos(conversation)
            if conversation.id in first:
                raise ValueError(
                    f"expected every id once, found {conversation.id!r} again (first on line "
                    f"{first[conversation.id]})"
                )
        except ValueError as error:
            bad.append(BadLine(number, str(error)))
            continue
        first[conversation.id] = number
        offsets.append(offset)
    if not first and not bad:
        raise ValueError(f"{path}: expected one JSON object a line, found an empty file")
    if len(bad) > MOST_BAD * (len(first) + len(bad)):
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{path}: expected at most {MOST_BAD:.0%} bad lines, found {len(bad)} of "
            f"{len(first) + len(bad)}: {'; '.join(str(line) for line in bad[:_SHOWN])}{more}"
        )
    return Conversations(path, root, tuple(first), np.array(offsets, np.int64), tuple(bad))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset in bytes, line) of every line that is not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield number, offset, raw
            offset += len(raw)


def _parse(raw: bytes, root: Path) -> Conversation:
    """What a line says, without looking at photos.

    Raises:
        ValueError: what was expected and what was found.
    """
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, found broken text ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {shown(row)}")
    if unknown := sorted(row.keys() - _KEYS):
        raise ValueError(
            f"expected the keys {', '.join(sorted(_KEYS))}, found {unknown[0]!r}; remove it"
        )
    name = _text(row.get("id"), "id")
    paths = tuple(root / _photo_name(p) for p in _list(row.get("images", []), "images"))
    messages = tuple(_message(m) for m in _list(row.get("messages"), "messages"))
    _check_turns(messages, len(paths))
    return Conversation(
        name,
        LazySequence(paths, read_photo),
        messages,
        tuple(_mask(m, len(paths)) for m in _list(row.get("masks", []), "masks")),
        tuple(_match(m, len(paths)) for m in _list(row.get("points", []), "points")),
        _text(row["sub_task"], "sub_task") if "sub_task" in row else "",
    )


def _check_turns(messages: tuple[Message, ...], n_images: int) -> None:
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "none"
        raise ValueError(f"expected messages that end with the assistant's, found {last}")
    if not any(m.role == "user" for m in messages):
        raise ValueError("expected a message of the user, found none")
    asked = sum(m.content.count(PLACEHOLDER) for m in messages if m.role == "user")
    if any(PLACEHOLDER in m.content for m in messages if m.role != "user"):
        raise ValueError(f"expected {PLACEHOLDER} in the user's messages only, found it elsewhere")
    if asked != n_images:
        raise ValueError(f"expected one {PLACEHOLDER} for each of {n_images} images, found {asked}")


def _check_photos(conversation: Conversation) -> None:
    """Every photo is there; where masks or points refer to one, its header says the same size."""
    for path in conversation.images.paths:
        if not path.is_file():
            raise ValueError(f"{path}: expected a photo, found no such file")
    for mask in conversation.masks:
        path = conversation.images.paths[mask.image]
        header, (height, width) = read_header(path), mask.size
        if header.turn_of((width, height)) is None:
            width, height = header.stored
            raise ValueError(
                f"masks: expected size [{height}, {width}] of {path.name}, found {list(mask.size)}"
            )
    for match in conversation.points:
        for index, (x, y) in ((match.image_a, match.a), (match.image_b, match.b)):
            path = conversation.images.paths[index]
            width, height = image_size(path, "a photo")
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                raise ValueError(
                    f"points: expected x, y within the {width} x {height} pixels of {path.name}, "
                    f"found {x:g}, {y:g}"
                )


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected {key}, a text, found {shown(value)}")
    return value


def _list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected {key}, a list, found {shown(value)}")
    return value


def _fields(value: object, key: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError(
            f"expected {key} as objects of {', '.join(sorted(names))}, found {shown(value)}"
        )
    return value


def _photo_name(value: object) -> str:
    """A relative path that stays in its folder."""
    name = _text(value, "images, file names,")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ValueError(
            f"expected images below the folder of the file (or of images=...), found {shown(name)}"
        )
    return name


def _message(value: object) -> Message:
    fields = _fields(value, "messages", {"role", "content"})
    if fields["role"] not in ROLES:
        raise ValueError(f"expected a role of {', '.join(ROLES)}, found {shown(fields['role'])}")
    return Message(fields["role"], _text(fields["content"], "content"))


def _index(value: object, key: str, n_images: int) -> int:
    if type(value) is not int or not 0 <= value < n_images:
        raise ValueError(
            f"expected {key}, an index below {n_images} (from 0), found {shown(value)}"
        )
    return value


def _mask(value: object, n_images: int) -> RleMask:
    fields = _fields(value, "masks", {"image", "label", "size", "counts"})
    size, counts = fields["size"], fields["counts"]
    if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int for n in size):
        raise ValueError(f"masks: expected size [height, width], found {shown(size)}")
    if not isinstance(counts, (str, list)):
        raise ValueError(f"masks: expected counts, COCO run lengths, found {shown(counts)}")
    try:
        check_rle((size[0], size[1]), counts)
    except ValueError as error:
        raise ValueError(f"masks: {error}") from error
    return RleMask(
        _index(fields["image"], "masks' image", n_images),
        _text(fields["label"], "masks' label"),
        (size[0], size[1]),
        counts if isinstance(counts, str) else tuple(counts),
    )


def _match(value: object, n_images: int) -> Match:
    fields = _fields(value, "points", {"image_a", "image_b", "a", "b"})
    return Match(
        _index(fields["image_a"], "points' image_a", n_images),
        _index(fields["image_b"], "points' image_b", n_images),
        _xy(fields["a"]),
        _xy(fields["b"]),
    )


def _xy(value: object) -> tuple[float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
        raise ValueError(f"points: expected [x, y] in pixels, found {shown(value)}")
    return float(numbers[0]), float(numbers[1])
