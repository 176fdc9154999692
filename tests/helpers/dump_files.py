"""Small prediction dumps in every form, for a made-up key of two tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

KEY = {
    **{f"val_Jar_Colour_{i}": f"({x})" for i, x in enumerate("ABBA", start=1)},
    **{f"val_Two-lid_Match_{i}": f"({x})" for i, x in enumerate("CAB", start=1)},
}
# What a model wrote; right but for the second jar, of which nothing can be read, and the last lid.
TEXTS = dict(
    zip(
        KEY,
        ["(A)", "It could be either.", "B", "I see (A) here", "(C)", "A", "(C)"],
        strict=True,
    )
)
OPTIONS = ("red", "green", "blue")


def put(path: Path, value: Any) -> Path:
    """JSON, as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def key(folder: Path) -> Path:
    """The answer key."""
    return put(folder / "answers.json", KEY)


def records(texts: dict[str, Any] | None = None, **parsed: Any) -> list[dict[str, Any]]:
    """Official records; `parsed` replaces the parsed answer of an id."""
    found = TEXTS if texts is None else texts
    return [
        {"idx": i, "answer": KEY[i], "full_prediction": t, "prediction": parsed.get(i, "(A)")}
        for i, t in found.items()
    ]


def official(folder: Path, *, names: tuple[str, str] = ("Jar Colour", "Two-lid Match")) -> Path:
    """One file a task, with an empty test split beside val."""
    for name, task in zip(names, ("Jar_Colour", "Two-lid_Match"), strict=True):
        mine = [r for r in records() if task in r["idx"]]
        put(folder / f"{name}.json", {"val": mine, "test": [{"idx": "test_Jar_Colour_1"}]})
    return folder


def lmms_eval(folder: Path, *, ids: bool = True) -> Path:
    """Samples as lmms-eval logs them, with the id in the metric's entry or by number only."""
    for task, name in (("Jar_Colour", "jar_colour"), ("Two-lid_Match", "two_lid_match")):
        path = folder / "model__x" / f"20250102_030405_samples_blink_{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for n, i in enumerate(i for i in KEY if task in i):
            line: dict[str, Any] = {
                "doc_id": n,
                "target": KEY[i],
                "filtered_resps": [TEXTS[i]],
                "blink_acc": {"id": i, "pred_parsed": "C", "pred": TEXTS[i]} if ids else 1.0,
            }
            lines.append(line)
        # Several workers finish in any order.
        path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    put(folder / "model__x" / "20250102_030405_results.json", {"results": {}})
    return folder


def vlmevalkit(path: Path, *, ids: bool = False, **changed: dict[str, str]) -> Path:
    """A table in another row order; numbers as index unless `ids`."""
    rows = [
        {
            "index": i if ids else str(n),
            "category": i.split("_", 1)[1].rpartition("_")[0],
            "answer": KEY[i].strip("()"),
            **dict(zip("ABC", OPTIONS, strict=True)),
            "D": "",
            "prediction": TEXTS[i],
        }
        | changed.get(i, {})
        for n, i in enumerate(KEY, start=8)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(reversed(rows))
    return path
