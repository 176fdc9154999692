"""The answers of a run as lmms-eval 0.7 writes its own: for its tools, and for `kvfix score`.

Below `lmms-eval/MODEL/` of the run folder stand `<time>_results.json` and, for each subtask,
`<time>_samples_<task>.jsonl`. Every question is scored as those of BLINK are (`blink_acc`), by the
letter that kvfix read. What lmms-eval measures and kvfix does not is left out: token counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import kvfix
from kvfix.data.groups import grouped
from kvfix.report.asked import answers_of
from kvfix.runs.atomic import write_text
from kvfix.runs.resume import read_run
from kvfix.runs.rows import AnswerRow

METRIC = "blink_acc"
FOLDER = "lmms-eval"
_NUMBER = re.compile(r"_(\d+)$")  # of BLINK's ids, counted from 1
_NO_NAME = re.compile(r'["<>:/|\\?*\[\]\s]+')


def write_lmms_eval(run: Path) -> Path | None:
    """Write the answers in a run folder as lmms-eval does; the results file, None without any."""
    tasks = grouped(answers_of(run).values(), _task)
    if not tasks:
        return None
    record = read_run(run)
    model = record.get("model") or {}
    name = str(model.get("id") or "model")
    started = datetime.fromisoformat(str(record["started"])).strftime("%Y%m%d_%H%M%S")
    folder = run / FOLDER / _NO_NAME.sub("__", "/".join(name.split("/")[-2:]).strip("/"))
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for task, rows in tasks.items():
        samples = [_sample(row, number) for number, row in _numbered(rows)]
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        write_text(folder / f"{started}_samples_{task}.jsonl", lines)
        hashes[task] = _hash("".join(f"sample_{k}{s['doc_hash']}" for k, s in enumerate(samples)))
    results = _results(tasks, record) | {
        "task_hashes": hashes,
        "model_source": "kvfix",
        "model_name": name,
        "model_name_sanitized": folder.name,
        "date": started,
        "total_evaluation_time_seconds": str(record.get("seconds")),
    }
    write_text(folder / f"{started}_results.json", json.dumps(results, indent=2) + "\n")
    return folder / f"{started}_results.json"


def _task(row: AnswerRow) -> str:
    """`blink_art_style`; other data are named alike."""
    return _NO_NAME.sub("_", f"{row.dataset}_{row.subtask}").lower().replace("-", "_")


def _numbered(rows: Sequence[AnswerRow]) -> list[tuple[int, AnswerRow]]:
    """Questions by their number in the data: that of the id if all ids end in one."""
    found = [_NUMBER.search(row.id) for row in rows]
    numbers = [int(m[1]) - 1 for m in found if m is not None]
    if len(set(numbers)) < len(rows):
        return list(enumerate(rows))
    return sorted(zip(numbers, rows, strict=True), key=lambda item: item[0])


def _sample(row: AnswerRow, number: int) -> dict[str, Any]:
    doc = {
        "idx": row.id,
        "question": row.question,
        "choices": list(row.options or ()),
        "answer": f"({row.answer})",
        "sub_task": row.subtask,
    }
    text = row.text or ""
    entry = {
        "id": row.id,
        "gt_content": row.answer,
        "pred_parsed": row.letter or "",
        "pred": text,
        "sub_task": row.subtask,
        "is_correct": bool(row.correct),
    }
    return {
        "doc_id": number,
        "doc": doc,
        "target": doc["answer"],
        "resps": [[text]],
        "filtered_resps": [text],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        METRIC: entry,
        "score": float(row.correct),  # what lmms-eval's comparison of two runs reads first
        "input": row.question,
    }


def _results(tasks: Mapping[str, list[AnswerRow]], record: Mapping[str, Any]) -> dict[str, Any]:
    protocol = record.get("mcq") or {}
    config = {"output_type": "generate_until", "metric_list": [{"metric": METRIC}]}
    model = record.get("model") or {}
    return {
        "results": {task: {"alias": task, **_accuracy(rows)} for task, rows in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {"task": task, "dataset_path": rows[0].dataset, **config, "metadata": protocol}
            for task, rows in tasks.items()
        },
        "versions": {task: protocol.get("version") for task in tasks},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: {METRIC: True} for task in tasks},
        "n-samples": {
            task: {"original": len(rows), "effective": len(rows)} for task, rows in tasks.items()
        },
        "config": {
            "model": model.get("family"),
            "model_args": f"pretrained={model.get('id')}"
            + (f",peft={model['adapter']}" if model.get("adapter") else ""),
            "kvfix": kvfix.__version__,
            "command": record.get("command"),
        },
    }


def _accuracy(rows: Sequence[AnswerRow]) -> dict[str, Any]:
    """The mean and its standard error, that of a sample."""
    n, mean = len(rows), sum(row.correct for row in rows) / len(rows)
    error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else "N/A"
    return {f"{METRIC},none": mean, f"{METRIC}_stderr,none": error}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
