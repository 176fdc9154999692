"""Multiple-choice questions of your own: in BLINK's columns, or in a form of training data.

Columns: `image_1`, `image_2`, ... (or `image`, `images`), `question` and `choices` (or `options`),
or a whole `prompt`, `answer`, and optionally `sub_task` and `idx` (or `id`). A prompt is asked word
for word; without one, question and lettered options are, one a line.

Training forms (see `kvfix.data.training`): one question of the user with lettered options, a line
each, and the assistant's answer. The user's text is asked word for word.

What is kvfix's own: a `sub_task` that is not given is named for the file; an id is `mcq_<sub
task>_<number of the record>` unless the question has one of BLINK's form; questions whose first
image is the same form a cluster; sub-tasks in turn, so that a limit keeps all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.data.groups import grouped, in_turn
from kvfix.data.readers.choices import LETTERS, lettered_lines, read_answer, read_choices
from kvfix.data.training.conversation import PLACEHOLDER
from kvfix.data.training.forms import FORMS, read_record
from kvfix.data.training.photos import Photo, Places
from kvfix.data.training.records import Records, open_records
from kvfix.data.units import MCQ, BadUnit, Question, UnitSet
from kvfix.wording import shown

TREE = """\
DIR is a JSONL file, a JSON list, a parquet file, a folder of them or the id of a hub dataset:
  {"image_1", ..., "question", "choices": [..], "answer": "(B)", "sub_task"}      BLINK's columns,
                                                                      sub_task and prompt optional
  a form of training data, whose question lists (A) .., (B) .. on lines and is answered "(B)"
"""
SPLITS = ("test", "val", "validation", "dev")  # taken of several, in this order
_IMAGES = tuple(f"image_{k}" for k in range(1, 21))
_ID = re.compile(r"[^\W_]+_(.+)_\d+")  # of BLINK: split, sub-task, number


class _Entry(NamedTuple):
    number: int  # from 1
    at: int
    id: str
    sub_task: str
    cluster: bytes  # digest of its first image, or of itself
    digest: bytes  # of everything the question is made of
    numbered: bool  # its answer is a number


@dataclass(frozen=True)
class _Scan:
    records: Records
    places: Places
    name: str
    entries: tuple[_Entry, ...]
    numbers_fit: bool  # every answer that is a number counts from 0


def own_questions(folder: Path) -> UnitSet:
    """The questions of a file, folder or hub dataset; decodes no image."""
    scan = _scan(folder)
    first: dict[bytes, str] = {}
    clusters = tuple(first.setdefault(e.cluster, e.id) for e in scan.entries)
    return UnitSet(
        MCQ,
        "mcq",
        "own",
        tuple(e.id for e in scan.entries),
        partial(_load, scan, clusters),
        hashlib.sha256(b"".join(e.digest for e in scan.entries)).hexdigest(),
        "question" if len(set(clusters)) == len(clusters) else "first image",
        tuple(e.sub_task for e in scan.entries),
    )


def own_notes(folder: Path) -> Iterator[str]:
    """How many questions there are of each sub-task."""
    scan = _scan(folder)
    counts = Counter(e.sub_task for e in scan.entries)
    yield f"{len(scan.entries)} questions: " + ", ".join(
        f"{shown(task).strip(chr(39))} {n}" for task, n in counts.most_common(20)
    )
    if scan.places.moved is not None:
        yield f"images of {scan.places.moved} are taken from {scan.places.root}"


def _scan(folder: Path) -> _Scan:
    records, root = open_records(str(folder), splits=SPLITS)
    otherwise = _task_name(Path(folder).stem) or "own"
    places = Places(root)
    entries: dict[str, _Entry] = {}
    fit = True
    try:
        for number, at, row in records:
            plain = row if isinstance(row, dict) else {}
            cells = _cells(plain)
            if places.moved is None and cells:
                named = cells[0].get("path") if isinstance(cells[0], dict) else cells[0]
                places = Places(root, places.moved_from(named))
            entry = _entry(number, at, plain, cells, places, otherwise, taken=entries)
            entries[entry.id] = entry
            fit &= not entry.numbered or _counts_from_0(plain)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if not entries:
        raise ValueError(f"{folder}: expected questions, found none")
    by_task = grouped(entries.values(), lambda e: e.sub_task)
    return _Scan(records, places, str(folder), in_turn(by_task.values()), fit)


def _entry(
    number: int,
    at: int,
    row: dict[str, Any],
    cells: list[Any],
    places: Places,
    otherwise: str,
    *,
    taken: dict[str, _Entry],
) -> _Entry:
    task = row.get("sub_task")
    sub_task = (_task_name(task) if isinstance(task, str) else "") or otherwise
    given = row.get("idx", row.get("id"))
    match = _ID.fullmatch(given) if isinstance(given, str) else None
    name = f"mcq_{sub_task}_{number}"
    if match and match[1] == sub_task and given not in taken:
        name = str(given)
    images = [_digest(cell, places) for cell in cells]
    texts = {k: v for k, v in row.items() if k not in (*_IMAGES, "image", "images")}
    written = json.dumps(texts, default=repr, sort_keys=True).encode()
    digest = hashlib.sha256(written + b"".join(images)).digest()
    first = images[0] if images else digest
    answer = row.get("answer")
    return _Entry(number, at, name, sub_task, first, digest, type(answer) is int)


def _counts_from_0(row: dict[str, Any]) -> bool:
    try:
        return 0 <= row["answer"] < len(read_choices(_options(row)))
    except ValueError:
        return True  # is left out for that


def _task_name(text: str) -> str:
    """A sub-task as ids can hold it."""
    return re.sub(r"\s+", "_", text.strip())[:80].strip("_")


def _digest(cell: Any, places: Places) -> bytes:
    """A hash of an image's bytes, or of its name and size, so that no file is read for it."""
    try:
        photo = places.photo(cell)
    except ValueError:
        return hashlib.sha256(repr(cell)[:1000].encode("utf-8", "replace")).digest()
    if isinstance(photo.source, bytes):
        return hashlib.sha256(photo.source).digest()
    named = f"{photo.source.name}\n{photo.source.stat().st_size}"
    return hashlib.sha256(named.encode("utf-8", "replace")).digest()


def _cells(row: dict[str, Any]) -> list[Any]:
    """What stands for a record's images, in order."""
    numbered = [row[key] for key in _IMAGES if row.get(key) is not None]
    if numbered:
        return numbered
    images = row.get("images", row.get("image"))
    if images is None:
        return []
    return images if isinstance(images, list) else [images]


def _options(row: dict[str, Any]) -> Any:
    """The options as the columns hold them; None where they do not."""
    for key in ("choices", "options"):
        if row.get(key) is not None:
            return row[key]
    lettered = {x: row[x] for x in LETTERS if row.get(x) is not None}
    return lettered or None


def _load(scan: _Scan, clusters: Sequence[str], index: int) -> Question:
    entry = scan.entries[index]
    where = f"{scan.name}: {scan.records.unit} {entry.number} ({entry.id})"
    try:
        row = scan.records.read(entry.at)
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {shown(row)}")
        row = {key: value for key, value in row.items() if value is not None}
        if entry.numbered and not scan.numbers_fit:
            raise ValueError(
                "expected answers as letters, or as numbers that count from 0 in every question, "
                f"found {shown(row.get('answer'))}, and others that are beyond their choices"
            )
        spoken = any(form.fits(row) for form in FORMS) and "prompt" not in row
        asked = _from_turns(row, scan.places) if spoken else _from_columns(row, scan.places)
        answer = read_answer(asked.answer, asked.choices)
        pictures = tuple(photo.read().image for photo in asked.photos)
    except (ValueError, OSError) as error:
        raise BadUnit(f"{where}: {error}") from error
    return Question(
        entry.id,
        clusters[index],
        entry.sub_task,
        pictures,
        asked.question,
        asked.choices,
        answer,
        official_prompt=asked.prompt,
    )


class _Asked(NamedTuple):
    question: str
    prompt: str | None  # asked word for word
    choices: tuple[str, ...]
    answer: Any
    photos: tuple[Photo, ...]


def _from_columns(row: dict[str, Any], places: Places) -> _Asked:
    if row.get("answer") is None:
        raise ValueError(f"expected an answer, found the keys {shown(sorted(map(str, row)))}")
    given, prompt = row.get("question"), row.get("prompt")
    for key, text in (("question", given), ("prompt", prompt)):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ValueError(f"expected {key}, a text, found {shown(text)}")
    if given is None and prompt is None:
        raise ValueError("expected question or prompt, a text, found neither")
    cells = _cells(row)
    if not cells:
        raise ValueError("expected at least one image, found none")
    options = _options(row)
    text = str(prompt if given is None else given)
    choices = lettered_lines(text) if options is None else read_choices(options)
    if not choices:
        raise ValueError("expected choices, or lines (A) .., (B) .. in the question, found none")
    listed = None if options is not None else _without_marks(text, len(cells))
    return _Asked(
        _without_marks(text, len(cells)),
        listed if prompt is None else _without_marks(str(prompt), len(cells)),
        choices,
        row["answer"],
        tuple(places.photo(cell) for cell in cells),
    )


def _from_turns(row: dict[str, Any], places: Places) -> _Asked:
    line = read_record(row, places, look=False).conversation
    *system, asked, answered = line.messages
    if system or asked.role != "user":
        found = ", ".join(message.role for message in line.messages)
        raise ValueError(
            f"expected one question of the user and its answer, found {found}: questions are asked "
            "alone, without a system turn"
        )
    if not line.photos:
        raise ValueError("expected at least one image, found none")
    text = _without_marks(asked.content, len(line.photos))
    options = _options(row)
    choices = lettered_lines(text) if options is None else read_choices(options)
    if not choices:
        raise ValueError("expected lines (A) .., (B) .. in the question, found none")
    whole = text if lettered_lines(text) else None
    return _Asked(text, whole, choices, row.get("answer", answered.content), line.photos)


def _without_marks(text: str, n: int) -> str:
    """A text whose images stand first, as `kvfix eval` asks."""
    marks = text.count(PLACEHOLDER)
    if marks not in (0, n):
        raise ValueError(f"expected one {PLACEHOLDER} for each of {n} images, found {marks}")
    rest = text.lstrip()
    for _ in range(marks):
        if not rest.startswith(PLACEHOLDER):
            raise ValueError(
                f"expected {PLACEHOLDER} before the question, found it within: `kvfix eval` shows "
                "images before the text"
            )
        rest = rest.removeprefix(PLACEHOLDER).lstrip()
    return rest.strip() if marks else text
