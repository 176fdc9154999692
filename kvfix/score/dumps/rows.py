"""The forms in which suites write multiple-choice predictions, each read into rows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvfix.data.units import QUESTION_ID
from kvfix.eval.mcq.letters.suite_rules import LETTERS
from kvfix.score.dumps.files import FORMS
from kvfix.score.dumps.spreadsheet import read_sheet
from kvfix.score.dumps.text import kind, parse_json, read_table, read_text
from kvfix.wording import shown

# Names under which tools write a question's id, what the model wrote, and the right answer.
IDS: Final = ("idx", "index", "id", "question_id", "qid")
TEXTS: Final = (
    *("full_prediction", "prediction", "pred", "response", "model_response", "output"),
    *("model_output", "generated_text", "raw_output", "text"),
)
TRUTHS: Final = ("answer", "gt_answer", "ground_truth", "gt", "label", "target")
# One of these keys of an object holds the records.
_WRAPPERS: Final = ("predictions", "results", "data", "samples", "outputs")


class Prediction(NamedTuple):
    """What a dump holds for one question."""

    text: str | None  # what the model wrote; None for null and for what is not text
    parsed: str | None  # the answer as the dump's author parsed it, such as "(A)"
    options: tuple[str, ...] | None  # texts of the options, where the dump holds them
    where: str  # file and place, for messages


class DumpRow(NamedTuple):
    """A prediction and whose it is."""

    found: Prediction
    id: str | None  # of the question; None where only task and order say which it is
    task: str = ""  # as the dump spells it
    order: int = 0  # 0-based place within the task
    of: int = 0  # how many rows the file has for the task; 0 where the order does not need it
    answer: str | None = None  # the row's own right answer, to check the order by
    repeats: int = 1  # how many answers the row holds, of which `found` is the first


def read_rows(file: Path, split: str) -> Iterator[DumpRow]:
    """The rows of one file, not aligned with a key yet; of an official one those of `split`."""
    suffix = file.suffix.lower()
    if suffix == ".xls":
        raise ValueError(f"{file}: expected .xlsx or csv, found an old spreadsheet; save it anew")
    if suffix not in FORMS:
        forms = f"{', '.join(FORMS[:-1])} or {FORMS[-1]}"
        raise ValueError(f"{file}: expected a file {forms}, found {shown(suffix)}")
    if suffix == ".xlsx":
        return _table_rows(file, read_sheet(file, _is_table), "row", 2)
    if suffix in (".csv", ".tsv"):
        return _table_rows(file, read_table(file, _is_table), "row", 2)
    text = read_text(file)
    if suffix == ".jsonl" and not text.lstrip().startswith("["):
        return _line_rows(file, text)
    first, _, more = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and more.lstrip().startswith("{"):
        return _line_rows(file, text)  # JSON lines under the name of JSON
    return _json_rows(parse_json(text, str(file)), file, split)


def _text_key(keys: Collection[str]) -> str | None:
    """Under which key a record holds what the model wrote.

    "answer" is the right answer in every form of a suite, so that it counts only beside another.
    """
    found = next((key for key in TEXTS if key in keys), None)
    if found is None and "answer" in keys and any(key in keys for key in TRUTHS[1:]):
        return "answer"
    return found


def _truth(record: dict[str, Any]) -> str | None:
    skipped = _text_key(record.keys())
    return next((_text(record[k]) for k in TRUTHS if k in record and k != skipped), None)


def _id_key(keys: Collection[str]) -> str | None:
    return next((key for key in IDS if key in keys), None)


def _is_table(names: Collection[str]) -> bool:
    return _id_key(names) is not None and _text_key(names) is not None


def _json_rows(value: Any, file: Path, split: str) -> Iterator[DumpRow]:
    if isinstance(value, dict) and split in value:
        value = value[split]
    elif isinstance(value, dict) and not any(QUESTION_ID.fullmatch(key) for key in value):
        value = _unwrapped(value, file, split)
    if isinstance(value, dict):
        for question, text in value.items():
            where = f"{file}: {question[:80]}"
            if isinstance(text, dict) and _text_key(text.keys()):
                yield _record({**text, "idx": question}, where)
            else:
                yield DumpRow(Prediction(_text(text), _text(text), None, where), question)
    elif isinstance(value, list):
        yield from _record_rows(value, file)
    else:
        raise ValueError(
            f"{file}: expected {{{split!r}: [...]}} or {{idx: text}}, found {kind(value)}"
        )


def _unwrapped(value: dict[str, Any], file: Path, split: str) -> Any:
    """The records of an object that holds no question's id itself."""
    if _is_table(value.keys()) and all(isinstance(v, dict | list) for v in value.values()):
        columns = {k: list(v.values() if isinstance(v, dict) else v) for k, v in value.items()}
        n = min(map(len, columns.values()))
        return [{k: column[i] for k, column in columns.items()} for i in range(n)]
    if wrapper := next((k for k in _WRAPPERS if isinstance(value.get(k), dict | list)), None):
        return value[wrapper]
    if value and all(isinstance(entry, list) for entry in value.values()):
        raise ValueError(
            f"{file}: expected split {split!r}, which the answers are of, found "
            f"{', '.join(map(shown, list(value)[:5]))}"
        )
    return value


def _record_rows(records: list[Any], file: Path) -> Iterator[DumpRow]:
    """Records by their ids, or VLMEvalKit's, whose `index` is a number."""
    if records and isinstance(records[0], dict) and not isinstance(records[0].get("idx"), str):
        numbered = isinstance(records[0].get("index"), int)
        if numbered and all(isinstance(r, dict) for r in records):
            table = [{str(k): _cell(v) for k, v in record.items()} for record in records]
            yield from _table_rows(file, table, "record", 1)
            return
    for i, record in enumerate(records):
        yield _record(record, f"{file}: record {i + 1}")


def _cell(value: Any) -> str:
    """A JSON value as it would stand in a table: null and NaN are empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else _text(value) or str(value)


def _record(record: Any, where: str) -> DumpRow:
    """An official record, or one like it; without `full_prediction` its text is parsed as well."""
    key = _text_key(record.keys()) if isinstance(record, dict) else None
    if key is None:
        keys = ", ".join(map(shown, list(record)[:6])) if isinstance(record, dict) else ""
        raise ValueError(
            f"{where}: expected an object with idx and full_prediction or prediction (or pred, "
            f"response, output, text), found {keys or kind(record)}"
        )
    question = record.get(_id_key(record.keys()) or "idx")
    if not isinstance(question, str):
        raise ValueError(f"{where}: expected idx, a question id, found {shown(question)}")
    text = _text(record[key])
    parsed = _text(record.get("prediction")) if key == "full_prediction" else text
    found = Prediction(text, parsed, _options(record.get("choices")), where)
    return DumpRow(found, question, answer=_truth(record))


def _line_rows(file: Path, text: str) -> Iterator[DumpRow]:
    records: list[Any] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        record = parse_json(line, where)
        if isinstance(record, dict) and record.keys() & {"resps", "filtered_resps", "blink_acc"}:
            yield _lmms_eval_row(record, file, where)
        elif isinstance(record, dict) and isinstance(record.get("index"), int):
            records.append(record)
        else:
            yield _record(record, where)
    yield from _record_rows(records, file)


def _lmms_eval_row(record: dict[str, Any], file: Path, where: str) -> DumpRow:
    """A line of lmms-eval's samples; its metric's entry holds the id, the answer and the letter.

    Of several answers to a question (``repeats``) the first counts, as in lmms-eval's own metric.
    """
    entry = record.get("blink_acc")
    entry = entry if isinstance(entry, dict) else {}
    doc = record.get("doc")
    doc = doc if isinstance(doc, dict) else {}
    said = next((record[k] for k in ("filtered_resps", "resps") if k in record), entry.get("pred"))
    while isinstance(said, list) and len(said) == 1:
        [said] = said
    repeats = len(said) if isinstance(said, list) else 1
    text = said[0] if isinstance(said, list) and said else said
    letter = entry.get("pred_parsed")
    parsed = f"({letter})" if isinstance(letter, str) and len(letter) == 1 else None
    found = Prediction(_text(text), parsed, _options(doc.get("choices")), where)
    question = entry.get("id", doc.get("idx"))
    if isinstance(question, str):
        return DumpRow(found, question, repeats=repeats)
    order = record.get("doc_id")
    if not isinstance(order, int):
        raise ValueError(f"{where}: expected doc_id, a number, found {shown(order)}")
    task = re.sub(r"^blink_", "", file.stem.rpartition("samples_")[2])
    answer = _text(record.get("target", doc.get("answer")))
    return DumpRow(found, None, task, order, answer=answer, repeats=repeats)


def _table_rows(
    file: Path, table: list[dict[str, str]], unit: str, first: int
) -> Iterator[DumpRow]:
    """Rows of VLMEvalKit, by id where index holds one, else by index within their category."""
    columns = table[0].keys() if table else ()
    id_key, text_key = _id_key(columns), _text_key(columns)
    missing = [c for c, key in (("index", id_key), ("prediction", text_key)) if key is None]
    if id_key is None or text_key is None:
        found = ", ".join(map(shown, list(columns)[:6])) or "no column"
        raise ValueError(
            f"{file}: expected columns index and prediction, found no "
            f"{' and no '.join(missing)} but {found}"
        )
    truth = next((k for k in TRUTHS if k in columns and k != text_key), "answer")
    tasks = Counter(row["category"] or "" for row in table) if "category" in columns else Counter()
    order: Counter[str] = Counter()
    numbered = enumerate(table, start=first)
    for number, row in sorted(numbered, key=lambda item: _index(item[1][id_key])):
        cells = [row.get(x) for x in LETTERS]
        texts = [cell for cell in cells if cell]
        where = f"{file}: {unit} {number}"
        prediction = Prediction(row[text_key] or None, None, tuple(texts) or None, where)
        index = (row[id_key] or "").strip()
        if not index.replace(".", "", 1).isdigit():
            yield DumpRow(prediction, index)
            continue
        task = row.get("category") or ""
        yield DumpRow(prediction, None, task, order[task], tasks[task], row.get(truth))
        order[task] += 1


def _index(cell: str | None) -> tuple[float, str]:
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
