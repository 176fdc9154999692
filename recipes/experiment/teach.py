r"""Lessons that teach a model to answer at all, without a question about perception among them.

    python recipes/experiment/teach.py data/train2/train.jsonl lessons
    TRAIN="python recipes/train_surfacing.py --config recipes/experiment/teach.yaml"
    $TRAIN model=pico_112 data=lessons/format.jsonl batch=24 steps=150 out=lesson_0
    $TRAIN model=pico_112 data=lessons/train.jsonl adapter=lesson_0 out=lesson_1
    $TRAIN model=pico data=lessons/letters.jsonl adapter=lesson_1 steps=120 rates.lm=5e-4 \
        out=lesson_2
    kvfix merge --model pico --adapter lesson_2 --out taught
    kvfix eval --model taught --data mcq=lessons/val.jsonl --task mcq --site vision

A model that says "(A)" to everything cannot be asked what it sees. It first learns the letter of
an option from questions that their own text answers: that is cheap, and without it the other
lessons left pico's choices at chance. Those are what photos show, in words and as one of two to
four options; the letter that is drawn at a mark, as such and as an option; counts and places.
Right options are at all letters alike. Similarity, correspondence, jigsaw, depth and style are
none of it.

Lesson 1 is cheap: `pico_112` is pico with images of 112 px. Lesson 2 is mostly letters, at the
168 px at which its vision tower tells them apart.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from answer_form import ASKED, format_lines
from mixture import Record, is_choice, mixed, parts, read_records, write_records

from kvfix.data.groups import grouped

LETTERS = "ABCD"
# How often each lesson comes.
SHARES = {
    "Naming": 4,
    "Naming_Choice": 4,
    "Reading": 2,
    "Reading_Choice": 3,
    "Counting": 2,
    "Spatial_Relation": 1,
    "Format": 2,
}
LETTER_SHARES = {"Reading": 4, "Reading_Choice": 4, "Naming_Choice": 2, "Counting": 1, "Naming": 1}
FORMAT_LINES = 1000
DRILLS, KEPT = 8000, 200  # lines of lesson 0, of which the last are held out


def lessons(records: Sequence[Record]) -> list[Record]:
    """All that can be taught from these records."""
    by_kind = grouped(records, lambda r: r["sub_task"])
    plain = [r for kind in SHARES for r in by_kind.get(kind, [])]
    # Places are asked, not shown: what the masks name is no lesson in answering.
    plain = [{key: of for key, of in r.items() if key != "masks"} for r in plain]
    letters = even_letters(by_kind["Reading"])
    chosen = [letter_choice(record) for record in letters]
    return [*plain, *naming_choices(by_kind["Naming"]), *chosen, *format_lines(FORMAT_LINES)]


def even_letters(records: Sequence[Record]) -> list[Record]:
    """As many of each drawn letter as there are of the rarest."""
    by_letter = grouped(records, answer_of)
    fewest = min(len(of) for of in by_letter.values())
    return [record for of in by_letter.values() for record in of[:fewest]]


def letter_choice(record: Record) -> Record:
    """The letter at a mark, asked as benchmarks ask for a marked point."""
    options = [f"Point {letter}" for letter in LETTERS]
    return asked(record, "Reading_Choice", options, LETTERS.index(answer_of(record)))


def naming_choices(records: Sequence[Record]) -> Iterator[Record]:
    """What a photo shows among other answers to the same question."""
    rng = np.random.default_rng(0)
    turn = itertools.count()
    for _, same in grouped(records, question_of).items():
        answers = sorted({answer_of(record) for record in same})
        for record in same:
            right = answer_of(record)
            others = [a for a in answers if not set(a.split()[1:]) & set(right.split()[1:])]
            others = [a for a in others if a != right]
            if not others:
                continue
            n = min(2 + next(turn) % 3, 1 + len(others))
            options = [str(o) for o in rng.choice(others, n - 1, replace=False)]
            at = int(rng.integers(n))
            options.insert(at, right)
            yield asked(record, "Naming_Choice", [o.rstrip(".").lower() for o in options], at)


def asked(record: Record, kind: str, options: Sequence[str], right: int) -> Record:
    """A multiple-choice question about a record's photos."""
    lines = [f"({letter}) {o}" for letter, o in zip(LETTERS, options, strict=False)]
    text = "\n".join((record["messages"][0]["content"], ASKED, *lines))
    return {
        "id": f"{record['id']}_choice",
        "sub_task": kind,
        "images": record["images"],
        "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"({LETTERS[right]})"},
        ],
    }


def question_of(record: Record) -> str:
    """What the user says."""
    return record["messages"][0]["content"]


def answer_of(record: Record) -> str:
    """What the assistant says."""
    return record["messages"][1]["content"]


def main() -> None:
    """Write the lessons, and choices among what was held out of them."""
    data, out = map(Path, sys.argv[1:])
    taught, held_out = parts(read_records(data))
    drills = format_lines(DRILLS)
    write_records(out / "format.jsonl", drills[:-KEPT])
    write_records(out / "format_val.jsonl", drills[-KEPT:])
    write_records(out / "train.jsonl", mixed(lessons(taught), SHARES))
    write_records(out / "letters.jsonl", mixed(lessons(taught), LETTER_SHARES))
    val = [r for r in lessons(held_out) if r["images"] and is_choice(r)]
    write_records(out / "val.jsonl", val)


if __name__ == "__main__":
    main()
