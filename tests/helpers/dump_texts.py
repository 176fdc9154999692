"""What a dump of answers says, by question."""

from __future__ import annotations

from dump_files import KEY

from kvfix.score.dumps.read import Dump

LETTERS = {i: a.strip("()") for i, a in KEY.items()}


def texts(dump: Dump) -> dict[str, str | None]:
    return {i: p.text for i, p in dump.predictions.items()}
