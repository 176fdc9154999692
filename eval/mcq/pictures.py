"""The pictures of a run's questions, saved while it has its data; the report shows them."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from kvfix.data.left_out import Attempts
from kvfix.data.pictures.join import concatenate
from kvfix.data.units import UnitSet
from kvfix.ranks import in_order
from kvfix.runs.atomic import atomic_file

DRAWN = 24  # questions per subtask with a picture
WIDEST, HIGHEST = 720, 240  # of a picture, in pixels


def picture_file(dataset: str, name: str) -> str:
    """Where a question's picture lies in its run folder; any text may be an id."""
    digest = hashlib.sha256(f"{dataset}\0{name}".encode()).hexdigest()[:16]
    return f"figures/questions/{digest}.webp"


def draw_questions(units: UnitSet, folder: Path) -> None:
    """Save the first questions of every subtask, their images side by side at display size.

    Ranks of one launch share them.

    A question whose images cannot be read has no picture; its row says why it was left out.
    """
    seen: dict[str, int] = {}
    due: list[int] = []
    for index, subtask in enumerate(units.subtasks):
        seen[subtask] = seen.get(subtask, 0) + 1
        if seen[subtask] <= DRAWN:
            due.append(index)
    attempts = Attempts(len(due), proven=True)
    in_order(len(due), lambda i: attempts.do(partial(_draw, units, due[i], folder)))


def _draw(units: UnitSet, index: int, folder: Path) -> None:
    path = folder / picture_file(units.dataset, units.ids[index])
    if path.exists():
        return
    joined = concatenate(units.question(index).images)
    joined.thumbnail((WIDEST, HIGHEST))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        joined.save(stream, format="webp", quality=80)
