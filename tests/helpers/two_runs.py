"""Synthetic run folders to compare: probes with planted curves, answers as strings of 0 and 1."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from curves import Place, rows

from kvfix.compare.run import Options, compare
from kvfix.runs.folder import Outcome
from kvfix.runs.rows import to_json

UNITS, LAYERS = 48, 5
Rows = list[dict[str, Any]]
Runner = Callable[..., Outcome]
BEFORE_QUIZ = {"Jigsaw": "0" * 20 + "1" * 20, "Art_Style": "01" * 20}
AFTER_QUIZ = {"Jigsaw": "1" * 18 + "00" + "1" * 19 + "0", "Art_Style": "01" * 20}
DATA = {"dataset": "blink", "task": "mcq", "split": "test", "n": 9, "sha256": "d" * 64}


def curve(
    best: int, *, lift: Mapping[str, float] | None = None, seed: int = 0
) -> dict[Place, np.ndarray]:
    """Scores a place; `lift` adds to a kind of site, `seed` draws the noise of each score.

    Hard units are hard at every place and in every run.
    """
    lift = lift or {}
    rng = np.random.default_rng(0)
    means: dict[Place, float] = {("vision", None): 0.6, ("projector", None): 0.5}
    means |= {("value", i): 0.4 + (0.2 if i == best else 0.02 * i) for i in range(LAYERS)}
    hard_N, rng = rng.normal(0, 0.1, UNITS), np.random.default_rng(seed + 1)
    return {
        at: mean + lift.get(at[0], 0.0) + hard_N + rng.normal(0, 0.02, UNITS)
        for at, mean in means.items()
    }


def probe_run(scores: Mapping[Place, np.ndarray]) -> Rows:
    found = rows(scores)
    return [{**to_json(r), "rows": len(scores)} for r in found]


def quiz(right: Mapping[str, str], *, unread: str = "") -> Rows:
    """A task's questions as a string a task: 1 right, 0 wrong; `unread` ids were not parsed."""
    out = []
    for task, marks in right.items():
        for i, mark in enumerate(marks):
            name = f"{task}_{i}"
            lost = name in unread.split()
            letter = None if lost else "A" if mark == "1" else "B"
            row = {"id": name, "task": task, "cluster": name, "correct": int(mark == "1")}
            out.append(row | {"letter": letter, "answer": "A", "unparsed": lost, "rows": 1})
    return out


def save(folder: Path, samples: Rows, *, name: str = "samples", **changed: Any) -> Path:
    """A finished run folder."""
    score = "correct" in samples[0]
    dataset, task = ("blink", "mcq") if score else ("scenes", "semantic_correspondence")
    data = [{"dataset": dataset, "task": task, "split": "test", "n": 9, "sha256": "d" * 64}]
    record = {
        "kvfix": "0.1.0",
        "kind": "score" if score else "diagnose",
        "command": "kvfix ...",
        "complete": True,
        "seed": 0,
        "fingerprint": {"weights": folder.name, "adapter": None, "protocol": 1, "profile": "kvfix"},
        "model": {"id": folder.name},
        "data": data,
    }
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record | changed))
    text = "".join(json.dumps(r) + "\n" for r in samples)
    (folder / "samples" / f"{name}.jsonl").write_text(text)
    return folder


def runner(folder: Path) -> Runner:
    """What compares two lists of samples under a folder; keywords change AFTER's record."""

    def of(before: Rows, after: Rows, **changed: Any) -> Outcome:
        save(folder / "before", before)
        save(folder / "after", after, **changed)
        options = Options(folder / "before", folder / "after", folder / "out", 2000)
        return compare(options, command="kvfix compare before after")

    return of


def place(record: dict[str, Any], name: str, metric: str = "PCK@0.1") -> dict[str, Any]:
    [row] = [r for r in record["probes"] if (r["place"], r["metric"]) == (name, metric)]
    return row


def other(**changed: Any) -> dict[str, Any]:
    return {"fingerprint": {"weights": "w", "protocol": 1, "profile": "kvfix"} | changed}
