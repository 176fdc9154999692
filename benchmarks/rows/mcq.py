"""Multiple choice: letters by log-probability and written answers, beside two other ways."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import mcq
from benchmarks.peers import peers
from benchmarks.rows.inputs import nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.data.catalog import load_units
from kvfix.data.units import MCQ, Question
from kvfix.eval.mcq.answer import answer
from kvfix.eval.mcq.letters.suite_rules import LETTERS
from kvfix.eval.mcq.options import spelled
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.shipped import nano_dir

PLAIN, PEER = "generate, and one pass an option", "lmms-eval"


def compared(asked: Asked) -> Iterator[Contest]:
    """The same questions and the same model; lmms-eval takes one question at a time."""
    mlm, protocol = nano(), McqProtocol()
    count = 2 if asked.tiny else 24
    [units] = load_units(("scenes",), tasks=[MCQ], limit=count, questions=True)
    questions = [q for i in range(len(units)) if isinstance(q := units.load(i), Question)]
    letters: dict[str, list[str]] = {}

    def ours() -> None:
        letters["kvfix"] = [a.logprob_letter for a in answer(mlm, questions, protocol)]

    def plain() -> None:
        letters[PLAIN] = mcq.plain(mlm, questions, protocol)

    with (
        tempfile.TemporaryDirectory() as folder,
        peers(
            asked,
            {PEER: "lmms_questions.py"},
            model=np.array(str(nano_dir())),
            questions=np.array(_written(questions, Path(folder), protocol)),
            max_new_tokens=np.array(protocol.max_new_tokens),
        ) as found,
    ):

        def same(way: str) -> str:
            if way in found.by_name:
                letters[way] = [LETTERS[i] for i in found.by_name[way].answer["choices"]]
            equal = sum(a == b for a, b in zip(letters["kvfix"], letters[way], strict=True))
            return f"{equal}/{len(questions)} letters equal"

        yield Contest(
            f"multiple choice, {len(questions)} questions",
            ours,
            {PLAIN: plain, **found.by_name},
            dict.fromkeys((PLAIN, PEER), Goal(2)),
            min(asked.rounds, 3),
            same,
            found.missing,
        )


def _written(questions: Sequence[Question], folder: Path, protocol: McqProtocol) -> str:
    """Questions and their images as files; returns the folder."""
    written = []
    for number, question in enumerate(questions):
        names = [str(folder / f"{number}_{i}.png") for i in range(len(question.images))]
        for image, name in zip(question.images, names, strict=True):
            image.save(name)
        options = [spelled(letter, protocol.form) for letter in LETTERS[: len(question.choices)]]
        text = question.preamble + question.prompt
        written.append({"images": names, "text": text, "options": options})
    (folder / "questions.json").write_text(json.dumps(written))
    return str(folder)
