"""The forms in which suites write multiple-choice predictions, each read into rows.

A row is not aligned with an answer key yet; `kvfix.eval.dumps` does that.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.eval.answers import LETTERS
from kvfix.eval.spreadsheet import read_sheet
from kvfix.wording import shown

QUESTION_ID = re.compile(r"([^\W_]+)_(.+)_(\d+)")  # split, task, number
_LARGEST_CELL = 2**27  # characters of a csv cell: VLMEvalKit can leave images in


class Prediction(NamedTuple):
    """What a dump holds for one question.

    Attributes:
        text: what the model wrote; None for null and for what is not text.
        parsed: the answer as the dump's author parsed it, such as "(A)"; None where there is none.
        options: texts of the options, where the dump holds them.
        where: file and place, for messages.
    """

    text: str | None
    parsed: str | None
    options: tuple[str, ...] | None
    where: str


class Row(NamedTuple):
    """A prediction and whose it is.

    Attributes:
        found: the prediction.
        id: of the question; None where only task and order say which it is.
        task: its task, as the dump spells it.
        order: 0-based place within the task.
        of: how many rows the file has for the task; 0 where the order does not depend on it.
        answer: the row's own right answer, to check the order by.
    """

    found: Prediction
    id: str | None
    task: str = ""
    order: int = 0
    of: int = 0
    answer: str | None = None


def read_rows(file: Path, split: str) -> Iterator[Row]:
    """The rows of one file.

    Args:
        file: .json, .jsonl, .csv, .tsv or .xlsx.
        split: which of the splits of an official file, such as `val`.

    Raises:
        ValueError: a form that is none of those known; the message names file and place.
    """
    suffix = file.suffix.lower()
    if suffix == ".xls":
        raise ValueError(f"{file}: expected .xlsx or csv, found an old spreadsheet; save it anew")
    if suffix == ".json":
        return _json_rows(parse_json(read_text(file), str(file)), file, split)
    if suffix == ".jsonl":
        return _jsonl_rows(file)
    if suffix == ".xlsx":
        return _table_rows(file, read_sheet(file))
    if suffix in (".csv", ".tsv"):
        return _table_rows(file, _read_csv(file, "," if suffix == ".csv" else "\t"))
    raise ValueError(
        f"{file}: expected a file .json, .jsonl, .csv, .tsv or .xlsx, found {suffix!r}"
    )


def _json_rows(value: Any, file: Path, split: str) -> Iterator[Row]:
    if isinstance(value, dict) and split in value:
        value = value[split]
    elif (
        isinstance(value, dict)
        and value
        and not any(QUESTION_ID.fullmatch(key) for key in value)
        and all(isinstance(entry, list) for entry in value.values())
    ):
        raise ValueError(
            f"{file}: expected split {split!r}, which the answers are of, found "
            f"{', '.join(map(repr, list(value)[:5]))}"
        )
    if isinstance(value, dict):
        for question, text in value.items():
            where = f"{file}: {question}"
            yield Row(Prediction(_text(text), _text(text), None, where), question)
    elif isinstance(value, list):
        for i, record in enumerate(value):
            yield _record(record, f"{file}: record {i + 1}")
    else:
        raise ValueError(
            f"{file}: expected {{{split!r}: [...]}} or {{idx: text}}, found {kind(value)}"
        )


def _record(record: Any, where: str) -> Row:
    """An official record; without `full_prediction` its `prediction` is the text as well."""
    if not isinstance(record, dict) or not record.keys() & {"full_prediction", "prediction"}:
        keys = ", ".join(map(repr, list(record)[:6])) if isinstance(record, dict) else ""
        raise ValueError(
            f"{where}: expected an object with idx and full_prediction or prediction, found "
            f"{keys or kind(record)}"
        )
    question = record.get("idx")
    if not isinstance(question, str):
        raise ValueError(f"{where}: expected idx, a question id, found {shown(question)}")
    parsed = _text(record.get("prediction"))
    text = _text(record["full_prediction"]) if "full_prediction" in record else parsed
    found = Prediction(text, parsed, _options(record.get("choices")), where)
    return Row(found, question, answer=_text(record.get("answer")))


def _jsonl_rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        record = parse_json(line, where)
        if isinstance(record, dict) and record.keys() & {"resps", "filtered_resps", "blink_acc"}:
            yield _lmms_eval_row(record, file, where)
        else:
            yield _record(record, where)


def _lmms_eval_row(record: dict[str, Any], file: Path, where: str) -> Row:
    """A line of lmms-eval's samples; its metric's entry holds the id, the answer and the letter."""
    entry = record.get("blink_acc")
    entry = entry if isinstance(entry, dict) else {}
    doc = record.get("doc")
    doc = doc if isinstance(doc, dict) else {}
    text = next((record[k] for k in ("filtered_resps", "resps") if k in record), entry.get("pred"))
    letter = entry.get("pred_parsed")
    parsed = f"({letter})" if isinstance(letter, str) and len(letter) == 1 else None
    found = Prediction(_text(text), parsed, _options(doc.get("choices")), where)
    question = entry.get("id", doc.get("idx"))
    if isinstance(question, str):
        return Row(found, question)
    order = record.get("doc_id")
    if not isinstance(order, int):
        raise ValueError(f"{where}: expected doc_id, a number, found {shown(order)}")
    task = re.sub(r"^blink_", "", file.stem.rpartition("_samples_")[2])
    return Row(found, None, task, order, answer=_text(record.get("target", doc.get("answer"))))


def _read_csv(file: Path, delimiter: str) -> list[dict[str, str]]:
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        return list(csv.DictReader(io.StringIO(read_text(file)), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"{file}: expected a table with a header, found {error}") from error
    finally:
        csv.field_size_limit(before)


def _table_rows(file: Path, table: list[dict[str, str]]) -> Iterator[Row]:
    """Rows of VLMEvalKit, by id where index holds one, else by index within their category."""
    columns = table[0].keys() if table else ()
    if missing := [c for c in ("index", "prediction") if c not in columns]:
        raise ValueError(
            f"{file}: expected columns index and prediction, found no {' and no '.join(missing)}"
        )
    tasks = Counter(row["category"] or "" for row in table) if "category" in columns else Counter()
    order: Counter[str] = Counter()
    for number, row in sorted(enumerate(table, start=2), key=lambda item: _index(item[1]["index"])):
        where = f"{file}: row {number}"
        cells = [row.get(x) for x in LETTERS]
        texts = [cell for cell in cells if cell]
        found = Prediction(row["prediction"] or None, None, tuple(texts) or None, where)
        index = (row["index"] or "").strip()
        if not index.replace(".", "", 1).isdigit():
            yield Row(found, index)
            continue
        task = row.get("category") or ""
        yield Row(found, None, task, order[task], tasks[task], row.get("answer"))
        order[task] += 1


def _index(cell: str | None) -> tuple[float, str]:
    """Sorts numbers as numbers."""
    try:
        return float(cell or ""), ""
    except ValueError:
        return 0.0, cell or ""


def _text(value: Any) -> str | None:
    """Text, also inside lists of one; None for everything else."""
    while isinstance(value, list) and len(value) == 1:
        [value] = value
    return value if isinstance(value, str) else None


def _options(choices: Any) -> tuple[str, ...] | None:
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        return None
    return tuple(choices) if 2 <= len(choices) <= len(LETTERS) else None


def read_text(path: Path) -> str:
    """A file as text, with or without a byte order mark.

    Raises:
        ValueError: not UTF-8.
        FileNotFoundError: no such file.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected a file, found none") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, found {error}") from error


def parse_json(text: str, where: str) -> Any:
    """JSON whose objects do not hold a key twice with different values.

    Raises:
        ValueError: not JSON, or such a key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out and out[key] != value:
                raise _Twice(f"{where}: expected {key!r} once, found it again and different")
            out[key] = value
        return out

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _Twice:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, found {error}") from error


class _Twice(ValueError):
    """A key twice; unlike json's own errors the message is whole."""


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return shown(value)
