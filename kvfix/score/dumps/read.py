"""Readers of multiple-choice predictions that were made elsewhere, and of their answer key.

Forms, told apart by file suffix and content; a folder may hold one file a task (which files of a
folder are read, `kvfix.score.dumps.files` says):

* official BLINK: ``{"val": [{"idx", "answer", "full_prediction", "prediction"}]}``;
* plain: ``{idx: text}`` or ``{idx: record}``, or a list or JSON lines of such records;
* lmms-eval: ``*_samples_*.jsonl``, found in subfolders too;
* VLMEvalKit: xlsx, csv, tsv or json with index, prediction, category, answer and A, B, ...

What the model wrote may also be called pred, response, output or text; "answer" is the right
answer. Text is UTF-8 or UTF-16; a csv file's fields may be parted by ``,``, ``;``, tabs or ``|``.

The answer key decides which questions there are, and what is right. Task names may be spelt with
spaces, hyphens or underscores. Rows without a question's id (lmms-eval's doc_id, VLMEvalKit's
index) are aligned by task and order, and refused unless their own answers agree with the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kvfix.data.units import QUESTION_ID, task_of
from kvfix.score.dumps.files import choose
from kvfix.score.dumps.rows import DumpRow, Prediction, read_rows
from kvfix.score.dumps.text import kind, parse_json, read_text
from kvfix.wording import shown

_ANSWER = re.compile(r"\(?([A-E])\)?")


@dataclass(frozen=True)
class Dump:
    """Predictions by question id, as the answer key spells it."""

    path: Path  # the file or folder that was read
    ids: tuple[str, ...]  # all questions of the key
    predictions: dict[str, Prediction]
    unknown: tuple[str, ...]  # ids that the key does not have
    disagreeing: tuple[str, ...]  # whose own right answer in the dump is not the key's
    repeated: int  # further copies of a prediction, equal to the first
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()  # what was chosen among several, in sentences

    @property
    def missing(self) -> list[str]:
        """Questions without a prediction."""
        return [i for i in self.ids if i not in self.predictions]

    def card(self) -> dict[str, Any]:
        """What was read, for the record."""
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "n": len(self.predictions),
            "sha256": self.sha256,
        }

    @property
    def sha256(self) -> str:
        """Digest of all that is scored, whatever the form it came in."""
        rows = [(i, p.text, p.parsed, p.options) for i, p in sorted(self.predictions.items())]
        return sha256(json.dumps(rows).encode()).hexdigest()


def read_answers(path: Path) -> dict[str, str]:
    """The answer key: question id -> letter, from JSON ``{"val_Art_Style_1": "(A)"}``."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f'{path}: expected answers as {{"val_Art_Style_1": "(A)", ...}}, found {kind(value)}'
        )
    out = {}
    for question, answer in value.items():
        letter = _letter(answer) if isinstance(answer, str) else None
        if letter is None:
            raise ValueError(
                f"{path}: {question}: expected an answer (A) to (E), found {shown(answer)}"
            )
        try:
            task_of(question)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        out[question] = letter
    return out


def read_dump(path: Path, answers: Mapping[str, str]) -> Dump:
    """The predictions in a file or folder for the questions of an answer key (id -> letter).

    A ValueError says what form, which question, or which rows cannot be told.
    """
    split = next(iter(answers)).partition("_")[0]
    files, notes = choose(path)
    align = _Aligner(answers)
    for file in files:
        align.add(read_rows(file, split), file)
    if not align.predictions:
        some = f"ids such as {align.unknown[0]!r}" if align.unknown else "no prediction"
        raise ValueError(
            f"{path}: expected predictions for questions such as {next(iter(answers))!r}, "
            f"found {some}"
        )
    if align.several:
        notes += (
            f"{align.several} questions have several answers each (repeats): the first is scored, "
            "as lmms-eval does",
        )
    return Dump(
        path,
        tuple(answers),
        align.predictions,
        tuple(align.unknown),
        tuple(align.disagreeing),
        align.repeated,
        files,
        notes,
    )


class _Aligner:
    def __init__(self, answers: Mapping[str, str]):
        self.answers = answers
        self.predictions: dict[str, Prediction] = {}
        self.unknown: list[str] = []
        self.disagreeing: list[str] = []
        self.repeated = 0
        self.several = 0  # rows with more than one answer
        plain: dict[str, list[str]] = {}
        self.by_task: dict[str, list[str]] = {}
        for question in sorted(answers, key=lambda q: int(q.rpartition("_")[2])):
            plain.setdefault(_plain(question), []).append(question)
            self.by_task.setdefault(_plain(task_of(question)), []).append(question)
        self.by_plain = {name: ids[0] for name, ids in plain.items() if len(ids) == 1}

    def add(self, rows: Iterable[DumpRow], file: Path) -> None:
        found = 0
        for row in rows:
            found += 1
            question = self._question(row)
            if question is None:
                self.unknown.append(str(row.id))
                continue
            before = self.predictions.setdefault(question, row.found)
            if before is row.found:
                self.several += row.repeats > 1
                if row.answer is not None and _letter(row.answer) != self.answers[question]:
                    self.disagreeing.append(question)
                continue
            if before[:3] != row.found[:3]:
                raise ValueError(
                    f"{row.found.where}: expected one prediction for {question}, found another "
                    f"in {before.where}"
                )
            self.repeated += 1
        if not found:
            raise ValueError(f"{file}: expected predictions, found none")

    def _question(self, row: DumpRow) -> str | None:
        if row.id is not None:
            if row.id in self.answers:
                return row.id
            if (known := self.by_plain.get(_plain(row.id))) is not None:
                return known
            if QUESTION_ID.fullmatch(row.id):
                return None
            raise ValueError(
                f"{row.found.where}: expected a question id such as "
                f"{next(iter(self.answers))}, found {row.id!r}"
            )
        of_task = self.by_task.get(_plain(row.task), [])
        if not row.task and len(self.by_task) == 1:
            [of_task] = self.by_task.values()
        if not 0 <= row.order < len(of_task):
            raise ValueError(
                f"{row.found.where}: expected one of the {len(of_task)} questions that the answers "
                f"have for task {row.task!r}, found number {row.order + 1}"
            )
        if row.of not in (0, len(of_task)):
            raise ValueError(
                f"{row.found.where}: expected {len(of_task)} rows of task {row.task!r}, which are "
                f"aligned with the answers by order, found {row.of}"
            )
        question = of_task[row.order]
        if _letter(row.answer or "") != self.answers[question]:
            raise ValueError(
                f"{row.found.where}: expected the answer {self.answers[question]} of {question}, "
                f"with which it is aligned by order, found {shown(row.answer)}; these are other "
                "questions or another order"
            )
        return question


def _letter(answer: str) -> str | None:
    match = _ANSWER.fullmatch(answer.strip())
    return match[1] if match else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "_", name.strip()).casefold()
