"""Training photos of your own: a part held out for choices, the rest mixed in shares.

Records are the lines of a JSONL file of conversations (`kvfix/data/training`) that have a
`sub_task`. The part that is held out shares no image file with the rest; a photo that was saved
again with other marks is another file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.data.groups import grouped

Record = dict[str, Any]
HELD_OUT = 10  # one record of so many


class Parts(NamedTuple):
    """What may be learned from, and what choices are made on."""

    train: list[Record]
    val: list[Record]


def read_records(file: Path) -> list[Record]:
    """All lines, with the whole path of every image."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    folder = file.parent.resolve()  # records are written elsewhere, and read from there
    return [r | {"images": [str(folder / name) for name in r["images"]]} for r in records]


def write_records(file: Path, records: Iterable[Record]) -> None:
    """One a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def parts(records: Sequence[Record]) -> Parts:
    """A hash of its id keeps a record; others that show one of its files are in neither part."""
    val = [r for r in records if _hash(r["id"]) % HELD_OUT == 0]
    photos = {name for record in val for name in record["images"]}
    chosen = {record["id"] for record in val}
    train = [r for r in records if r["id"] not in chosen and not photos.intersection(r["images"])]
    return Parts(train, val)


def mixed(records: Sequence[Record], shares: Mapping[str, int]) -> list[Record]:
    """Kinds as often as their shares say, as many records as there are without one twice.

    Raises:
        ValueError: Fewer records of a kind than its share.
    """
    by_kind = grouped(records, lambda r: r["sub_task"])
    wanted = {kind: share for kind, share in shares.items() if share}
    short = [kind for kind, share in wanted.items() if len(by_kind.get(kind, ())) < share]
    if short or not wanted:
        found = {kind: len(of) for kind, of in by_kind.items()}
        raise ValueError(
            f"expected records of {', '.join(wanted) or 'some kind'}, of each as many as its share "
            f"or more, found {found}"
        )
    rounds = min(len(by_kind[kind]) // share for kind, share in wanted.items())
    return [
        record
        for kind, share in wanted.items()
        for record in sorted(by_kind[kind], key=lambda r: _hash(r["id"]))[: rounds * share]
    ]


def is_choice(record: Record) -> bool:
    """Whether the answer is an option's letter."""
    return record["messages"][-1]["content"].startswith("(")


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
