"""`index.html`: many runs in one sortable table, each with its model, adapter and task scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from kvfix.findings import number
from kvfix.report.html import html_environment, own_script, readable_date
from kvfix.report.stages import load, panels
from kvfix.report.verdict import model_name
from kvfix.runs.atomic import write_text


class Column(NamedTuple):
    """What a column of scores holds."""

    name: str
    below: str  # metric and data


@dataclass(frozen=True)
class Entry:
    """A run's row."""

    link: str
    folder: str
    kind: str
    model: str
    adapter: str
    started: str
    scores: dict[Column, float]  # in the metric's own units


def write_index(folders: Sequence[Path], out: Path) -> Path:
    """Write `index.html` of run folders that have a report into `out`; raises as `load`."""
    entries = [_entry(folder, out) for folder in folders]
    columns = dict.fromkeys(column for entry in entries for column in entry.scores)
    page = html_environment().get_template("index.html.j2")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "index.html", page.render(entries=entries, columns=columns, **own_script()))
    return out / "index.html"


def _entry(folder: Path, out: Path) -> Entry:
    run = load(folder)
    model = run.get("model") or {}
    report = os.path.relpath(folder.resolve() / "report.html", out.resolve())
    return Entry(
        link=quote(Path(report).as_posix()),
        folder=folder.name,
        kind=str(run.get("kind") or ""),
        model=model_name({"id": model.get("id")}),
        adapter=Path(str(model["adapter"])).name if model.get("adapter") else "",
        started=readable_date(run.get("started")) or "",
        scores=_scores(run),
    )


def _scores(run: dict[str, Any]) -> dict[Column, float]:
    """The answers as a mean over tasks, and the best value layer's score of each probe."""
    found: dict[Column, float] = {}
    for row in run["results"]:
        if row.get("metric") == "accuracy_macro" and row.get("scoring") == "generation":
            value = number(row.get("value"))
            if value is not None:
                found[Column("answers", f"accuracy, {row.get('dataset')}")] = value
    for panel in panels(run):
        best = panel.best
        if panel.headline and panel.staged and best is not None and best.value is not None:
            found[Column(panel.name, f"{panel.metric}, {panel.dataset}")] = best.value
    return found
