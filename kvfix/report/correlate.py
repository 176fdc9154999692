"""`correlate.json`, `correlate.html`, `correlate.md` and the terminal's table of a correlation over
runs. Whatever came from data counts as hostile text, as in the report of one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvfix.findings import PLACES, interval, number
from kvfix.report.columns import add_names, add_numbers, lean_table
from kvfix.report.compare import p_value, task_name
from kvfix.report.html import readable_date, readable_duration
from kvfix.report.stages import clean

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("best", "last")
SCORINGS = {"generation": "written", "logprob": "log-prob."}
GLOSSARY = (
    (
        "Gain",
        "A probe's score of the image values of a layer minus its score of what the projector "
        "passes in: what the language model adds.",
    ),
    ("Accuracy", "Macro accuracy of the model's answers to multiple-choice questions."),
    (
        "Spearman's rho",
        "How far the order of the runs by gain is their order by accuracy: 1 the same order, -1 "
        "the reverse, 0 none.",
    ),
    (
        "Interval",
        "95 % by Bonett and Wright (2000), over runs that count as independent. It says what other "
        "models like these would show.",
    ),
    (
        "p, Holm p",
        "The share of all pairings of gains with accuracies whose rho is as far from 0 (up to 8 "
        "runs, else Student's t); Holm's correction for all rows of the table.",
    ),
)


def page_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the templates of a correlation show."""
    record = clean(record)
    facts = [
        ("Runs", str(len(record["runs"]))),
        ("Started", readable_date(record["started"])),
        ("Took", readable_duration(number(record["seconds"]))),
        ("kvfix", record["kvfix"]),
    ]
    return {
        "run": record,
        "facts": facts,
        "rows": [cells(r) for r in record["correlations"] if r["place"] in SHOWN],
        "layers": [cells(r) for r in record["correlations"] if r["place"] not in SHOWN],
        "points": points(record),
        "glossary": GLOSSARY,
    }


def cells(row: dict[str, Any]) -> dict[str, Any]:
    """A correlation as texts."""
    low, high = interval(row["ci"])
    rho = number(row["rho"])
    return {
        "probe": _probe(row),
        "metric": row["metric"] or "mean",
        "questions": row["questions"],
        "scoring": SCORINGS.get(row["scoring"], row["scoring"]),
        "place": PLACES[row["place"]].name
        if row["place"] in SHOWN
        else f"value layer {row['layer']}",
        "rho": "–" if rho is None else f"{rho:+.2f}",
        "span": "too few" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]",
        "p": p_value(row["p"]),
        "p_holm": p_value(row["p_holm"]),
        "n": row["n"],
        "clear": row["clear"],
    }


def points(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a run: its gains and accuracies."""
    return [
        {
            "name": run["name"],
            "folder": run["folder"],
            "command": run["command"],
            "gains": [{**g, "probe": _probe(g)} for g in run["gains"]],
            "answers": [
                {**a, "scoring": SCORINGS.get(a["scoring"], a["scoring"])} for a in run["answers"]
            ],
        }
        for run in record["runs"]
    ]


def _probe(row: dict[str, Any]) -> str:
    return row["task"] if row["dataset"] is None else task_name(row)


def table(record: dict[str, Any]) -> Table:
    """One row for each probe, place and way of answering; at most 80 columns wide."""
    from rich.text import Text

    rows = [r for r in clean(record)["correlations"] if r["place"] in SHOWN]
    texts = [cells(r) for r in rows]
    shown = lean_table(
        legend="rho = Spearman's, of the gain of the language model at a value layer and the "
        "accuracy of the answers, over runs; bold = Holm p below 0.05"
    )
    add_names(shown, "gain at", (c["probe"] for c in texts), most=20)
    add_names(shown, "layer", (r["place"] for r in rows), most=5)
    add_names(shown, "answers", (c["questions"] for c in texts), most=14)
    add_numbers(shown, "rho,\n95 % CI", "p", "Holm p", "n")
    for row, c in zip(rows, texts, strict=True):
        shown.add_row(
            Text(c["probe"]),
            row["place"],
            Text(f"{c['questions']}, {c['scoring']}"),
            f"{c['rho']}\n{c['span']}",
            *(str(c[k]) for k in ("p", "p_holm", "n")),
            style="bold" if c["clear"] else "",
        )
    return shown
