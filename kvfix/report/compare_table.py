"""What the terminal shows after `kvfix compare`; every table fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvfix.findings import interval
from kvfix.report.columns import add_names, add_numbers, lean_table
from kvfix.report.compare import (
    ALPHA,
    format_rows,
    num,
    p_value,
    pct,
    place_name,
    pspan,
    pts,
    signed,
    span,
    task_name,
)
from kvfix.report.stages import clean
from kvfix.report.table import findings

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """The tables of a comparison, answers first."""
    record = clean(record)
    for questions in record["questions"]:
        yield answers_table(questions)
        yield format_table(questions)
    if record["probes"]:
        yield probes_table(record["probes"])


def sentences(record: dict[str, Any]) -> RenderableType:
    """The findings in words; the numbers beside them in compare.json stand in the tables."""
    return findings({"findings": [{**f, "percent": False} for f in record["findings"]]})


def answers_table(questions: dict[str, Any]) -> Table:
    """One row for each task, then micro and macro; in percent and points."""
    from rich.text import Text

    table = lean_table(
        f"{questions['dataset']}: answers before and after, in %",
        "Holm p = exact McNemar, corrected for many tasks (bold: below 0.05);\n"
        "det. = the smallest difference that as many questions show with 80 % power",
    )
    names = [row["task"].replace("_", " ") for row in questions["tasks"]]
    add_names(table, "task", names, most=15)
    heads = ("n", "before", "after", "difference,\n95 % CI", "fixed/\nbroken", "Holm p", "det.")
    add_numbers(table, *heads)
    for name, row in zip(names, questions["tasks"], strict=True):
        table.add_row(Text(name), *_cells(row), style="bold" if row["p_holm"] < ALPHA else "")
    table.add_section()
    for name in ("micro", "macro"):
        table.add_row(name, *_cells(questions[name]), style=_style(questions[name]))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["n"]),
        pct(row["before"]),
        pct(row["after"]),
        f"{pts(row['value'])}\n{pspan(row['ci'])}".rstrip(),
        f"{row['fixed']}/{row['broken']}" if "fixed" in row else "",
        p_value(row["p_holm"]) if "p_holm" in row else "",
        pct(row["minimum_detectable"]),
    ]


def format_table(questions: dict[str, Any]) -> Table:
    """Format or perception? Unread answers, letters, and accuracy where both answers were read."""
    from rich.text import Text

    table = lean_table()
    table.add_column("format or perception?", overflow="fold", max_width=26)
    add_numbers(table, "before", "after", "difference,\n95 % CI", "p", "Holm p", "right")
    for name, row in format_rows(questions):
        cells = [pct(row["before"]), pct(row["after"])]
        cells.append(f"{pts(row['value'])}\n{pspan(row['ci'])}".rstrip())
        cells += [p_value(row[k]) if k in row else "" for k in ("p", "p_holm")]
        table.add_row(Text(name), *cells, pct(row["right"]) if "right" in row else "")
    return table


def probes_table(probes: list[dict[str, Any]]) -> Table:
    """One row for each task and place."""
    from rich.text import Text

    table = lean_table(legend="bold = clear: an interval for all tasks at once leaves out 0")
    add_names(table, "task", map(task_name, probes), most=15)
    table.add_column("place", overflow="fold", min_width=9, max_width=10)
    add_names(table, "metric", (row["metric"] for row in probes), most=9)
    add_numbers(table, "before", "after", "difference,\n95 % CI", "n")
    previous = None
    for row in probes:
        same, previous = previous == (row["task"], row["dataset"]), (row["task"], row["dataset"])
        table.add_row(
            Text("" if same else task_name(row)),
            place_name(row),
            Text(row["metric"]),
            *(num(row[k]) for k in ("before", "after")),
            f"{signed(row['value'])}\n{span(row['ci'])}".rstrip(),
            str(row["n"]),
            style="bold" if row["clear"] else "",
        )
    if any(r["place"] == "best" and not r["held_out"] for r in probes):
        table.caption = f"{table.caption};\n* chosen on the units that compare it"
    return table


def _style(row: dict[str, Any]) -> str:
    low, high = interval(row["ci"])
    return "bold" if low is not None and (low > 0 or (high or 0.0) < 0) else ""
