"""Questions that a reader opens: their images, options, the readout's choice and the answers.

All is read from the run folder, pictures too, so that a report can be written again without model
or data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvfix.data.units import MCQ
from kvfix.eval.mcq.letters.parse import EVERY_LETTER
from kvfix.eval.mcq.pictures import picture_file
from kvfix.report.pictures.album import Album, Picture
from kvfix.runs.rows import READOUT, AnswerRow, ReadoutRow, Rows

# Unsurfaced questions first: they are what a reader came for.
OUTCOMES = ("unsurfaced", "wrong", "answer right alone", "both right", "right")


@dataclass(frozen=True)
class Asked:
    """A question as a page shows it."""

    id: str
    subtask: str
    dataset: str
    question: str
    options: tuple[str, ...]
    right: int | None  # index of the right option; None where it was not recorded
    readout: int | None  # index of the option that the image values give
    logprobs: tuple[float, ...] | None
    outcome: str  # one of `OUTCOMES`, or of a comparison: fixed, broken, right, wrong
    said: tuple[tuple[str, str], ...]  # who wrote what: (`the model`, text), or before and after
    picture: Picture | None = None


def asked(folder: Path, surfacing: Sequence[Mapping[str, Any]], album: Album) -> list[Asked]:
    """The questions of a run that have a picture, unsurfaced ones first.

    `surfacing` of run.json says which layer reads out each subtask.
    """
    layers = {
        (r.get("dataset"), r.get("subtask")): r.get("layer")
        for r in surfacing
        if r.get("scoring") == "generation"
    }
    choices = _choices(folder, layers)
    found = [
        _asked(row, choices.get((row.dataset, row.id)))
        for row in answers_of(folder).values()
        if row.question is not None and (folder / _picture_of(row)).exists()
    ]
    found.sort(key=lambda q: OUTCOMES.index(q.outcome))
    return [replace(q, picture=album.get(picture_file(q.dataset, q.id))) for q in found]


def answers_of(folder: Path) -> dict[tuple[str, str], AnswerRow]:
    """Every answer of a run by dataset and id."""
    files = sorted((folder / "samples").glob(f"{MCQ}*.jsonl"))
    return {(str(row.dataset), row.id): row for file in files for row in Rows(file, AnswerRow)}


def _picture_of(row: AnswerRow) -> str:
    return picture_file(str(row.dataset), row.id)


def _choices(
    folder: Path, layers: Mapping[tuple[Any, Any], Any]
) -> dict[tuple[str | None, str], int]:
    """The option that the values of the reported layer give."""
    return {
        (row.dataset, row.id): row.choice
        for file in sorted((folder / "samples").glob(f"{READOUT}*.jsonl"))
        for row in Rows(file, ReadoutRow)
        if row.control is None
        and row.head is None
        and row.site == "value"
        and row.layer == layers.get((row.dataset, row.subtask), -1)
    }


def _asked(row: AnswerRow, choice: int | None) -> Asked:
    options = row.options or ()
    right = EVERY_LETTER.find(row.answer)
    if choice is None:
        outcome = "right" if row.correct else "wrong"
    else:
        read = choice == right
        outcome = {
            (True, False): "unsurfaced",
            (True, True): "both right",
            (False, True): "answer right alone",
            (False, False): "wrong",
        }[read, bool(row.correct)]
    return Asked(
        row.id,
        row.subtask,
        str(row.dataset),
        row.question or "",
        options,
        right if 0 <= right < len(options) else None,
        choice,
        row.logprobs,
        outcome,
        (("the model", row.text or ""),),
    )


def changed(before: Path, after: Path, album: Album) -> list[Asked]:
    """The questions that two runs answered, by AFTER's pictures; fixed and broken ones first."""
    earlier, found = answers_of(before), list[Asked]()
    for name, row in answers_of(after).items():
        old = earlier.get(name)
        if old is None or row.question is None:
            continue
        if old.correct != row.correct:
            outcome = "fixed" if row.correct else "broken"
            said = (("before", old.text or ""), ("after", row.text or ""))
            shown = replace(_asked(row, None), outcome=outcome, said=said)
            found.append(replace(shown, picture=album.get(_picture_of(row))))
    return sorted(found, key=lambda q: q.outcome != "broken")
