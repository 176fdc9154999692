"""How many BLINK-form questions are right without a model: a readout must beat this, not chance.

    python recipes/experiment/without_model.py BLINK2 BLINK_official

Of every kind, how often these are right: the commonest answer of the kind; the option whose file is
larger; the image whose mean colour is closer to the first one's; the point farther from the centre
of its image, and the one nearer to where the first image has REF (points are read from
`points.json` in the folder; without it these two are left out). The commonest answer is that of the
questions themselves.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.readers.blink import blink_questions
from kvfix.data.readers.parquet import encoded_image, read_rows
from kvfix.data.units import Question
from kvfix.eval.mcq.readouts import image_options

RULES = ("commonest answer", "larger file", "mean colour", "farther from centre", "place of REF")
_IMAGES = ("image_1", "image_2", "image_3", "image_4")


class Kind(NamedTuple):
    """One kind of question."""

    n: int
    chance: float
    right: dict[str, float]  # rule -> share; rules that say nothing here are not in it


def without_model(folder: Path) -> dict[str, Kind]:
    """Kind -> how often the rules are right on its questions."""
    units, sizes = blink_questions(folder), file_sizes(folder)
    points = json.loads(file.read_text()) if (file := folder / "points.json").exists() else {}
    asked: dict[str, list[Question]] = defaultdict(list)
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for index in range(len(units.ids)):
        question = units.load(index)
        assert isinstance(question, Question)
        choices = by_images(question, sizes[question.id])
        if question.id in points:
            choices |= by_points(question.images[-1].size, **points[question.id])
        for rule, choice in choices.items():
            hits[question.sub_task][rule].append(choice == question.answer)
        asked[question.sub_task].append(replace(question, images=()))
    found = {}
    for kind, of in sorted(asked.items()):
        answers = Counter(q.choices[q.answer] for q in of)
        right = {rule: float(np.mean(said)) for rule, said in hits[kind].items()}
        right["commonest answer"] = max(answers.values()) / len(of)
        found[kind] = Kind(len(of), float(np.mean([1 / len(q.choices) for q in of])), right)
    return found


def is_blink(folder: Path) -> bool:
    """Whether a folder has BLINK's layout, which `without_model` reads."""
    return any(folder.glob("*/val*.parquet"))


def file_sizes(folder: Path) -> dict[str, list[int]]:
    """Question -> bytes of its images' files."""
    return {
        row["idx"]: [len(encoded_image(row[key]) or b"") for key in _IMAGES if row.get(key)]
        for file in sorted(folder.glob("*/val*.parquet"))
        for _, row in read_rows(file, required=("idx", _IMAGES[0]), optional=_IMAGES[1:])
    }


def by_images(question: Question, sizes: Sequence[int]) -> dict[str, int]:
    """Rule -> its choice, of a question whose options are images."""
    found = image_options(question)
    if isinstance(found, str):
        return {}
    colours = np.array([np.asarray(image, float).mean((0, 1)) for image in question.images])
    options = list(found.options)
    return {
        "larger file": int(np.argmax([sizes[i] for i in options])),
        "mean colour": int(np.linalg.norm(colours[options] - colours[0], axis=1).argmin()),
    }


def by_points(
    size: tuple[int, int], points: Sequence[Sequence[float]], ref: Sequence[float] | None = None
) -> dict[str, int]:
    """Rule -> its choice, of a question whose options are points on an image of that size."""
    at_K2 = np.array(points, float)
    farthest = np.linalg.norm(at_K2 - np.array(size) / 2, axis=1).argmax()
    choices = {"farther from centre": int(farthest)}
    if ref is not None:
        choices["place of REF"] = int(np.linalg.norm(at_K2 - np.array(ref), axis=1).argmin())
    return choices


def table(kinds: Mapping[str, Kind], rules: Sequence[str] = RULES) -> Iterator[str]:
    """Rows of a Markdown table, in percent."""
    yield "| kind | n | chance | " + " | ".join(rules) + " |"
    yield "| --- | ---: | ---: |" + " ---: |" * len(rules)
    for kind, of in kinds.items():
        cells = [f"{100 * of.right[r]:.1f}" if r in of.right else "" for r in rules]
        name = kind.replace("_", " ")
        yield f"| {name} | {of.n} | {100 * of.chance:.1f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table for each folder."""
    for folder in map(Path, sys.argv[1:]):
        if not is_blink(folder):
            sys.exit(f"{folder}: expected KIND/val*.parquet as BLINK has it, found none")
        print(f"### {folder.name}\n", *table(without_model(folder)), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
