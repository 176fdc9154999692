"""What the terminal shows after `kvfix score`: a table, and what was odd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvfix.report.columns import add_names, add_numbers, lean_table
from kvfix.score.predictions import some
from kvfix.score.record import Benchmark

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 5  # ids in a note before it only counts


def table_of(benchmark: Benchmark, record: dict[str, Any]) -> Table:
    """The figures of a record, those of all units first or last."""
    if "tasks" in record:
        return _by_task(benchmark, record)
    return _by_sequence(benchmark, record) if "sequences" in record else _figures(benchmark, record)


def notes_of(benchmark: Benchmark, record: dict[str, Any]) -> Iterator[str]:
    """What the reader must know about predictions and truth, a line each."""
    for key, what in benchmark.oddities.items():
        if ids := record[key]:
            yield f"{what}: {len(ids)} ({some(ids, _SHOWN)})"
    for entry in record["left_out"][:_SHOWN]:
        yield f"left out {entry['id']}: {entry['why']}"
    if (more := len(record["left_out"]) - _SHOWN) > 0:
        yield f"{more} more units left out"
    yield from record["notes"]


def _by_task(benchmark: Benchmark, record: dict[str, Any]) -> Table:
    """One row for each task, then micro and macro; accuracies and unparsed rates in percent."""
    from rich.text import Text

    by = "parsed letters of the dump" if record["parsed"] else "answers extracted"
    letters = [name for name in record["letters"] if name != "unparsed"]
    table = _table(
        f"{benchmark.title}, {by}, profile {record['profile']} ({record['follows']})",
        (name.replace("_", " ") for name in record["tasks"]),
        *("task", "accuracy", "95 % CI", "n", "unparsed", *letters),
    )

    def cells(value: float, ci: Sequence[float] | None, row: dict[str, Any]) -> list[str]:
        counts = (str(row["letters"].get(x, 0)) for x in letters)
        return [*_percent(value, ci), str(row["n"]), f"{100 * row['unparsed_rate']:.1f} %", *counts]

    for name, task in record["tasks"].items():
        table.add_row(Text(name.replace("_", " ")), *cells(task["accuracy"], task["ci"], task))
    table.add_section()
    table.add_row("micro", *cells(record["micro"], record["micro_ci"], record))
    macro = _percent(record["macro"], record["macro_ci"])
    table.add_row("macro", *macro, str(record["n"]), style="bold")
    answers = ", ".join(f"{x} {n}" for x, n in record["answers"].items())
    table.caption = f"letters of the right answers: {answers}"
    return table


def _by_sequence(benchmark: Benchmark, record: dict[str, Any]) -> Table:
    from rich.text import Text

    measures = list(record["ci"])
    title = benchmark.title.replace("DAVIS", record["benchmark"].replace("davis", "DAVIS-"))
    heads = (m.replace("-", "\n") for m in measures)
    table = _table(title, record["sequences"], "sequence", "objects", *heads)
    for name, sequence in record["sequences"].items():
        figures = (f"{sequence[m]:.3f}" for m in measures)
        table.add_row(Text(name), str(len(sequence["objects"])), *figures)
    table.add_section()
    means = (f"{record[m]:.3f}" for m in measures)
    table.add_row("all", str(record["n_objects"]), *means, style="bold")
    spans = [record["ci"][m] for m in measures]
    for end, what in enumerate(("95 % CI, low", "95 % CI, high")):
        cells = ("–" if span is None else f"{span[end]:.3f}" for span in spans)
        table.add_row(what, "", *cells, style="dim")
    return table


def _figures(benchmark: Benchmark, record: dict[str, Any]) -> Table:
    """One row for each figure: first those of all units, then those of parts; in percent."""
    from rich.text import Text

    [data] = record["data"]
    rule = f", rule of {record['profile']}" if "profile" in record else ""
    first = record["results"][0]
    table = _table(
        f"{benchmark.title}, {data['split']}{rule}",
        (_figure(row) for row in record["results"]),
        *("metric", "value", "95 % CI", "n", f"clusters ({first['cluster']})"),
    )
    previous = None
    for row in record["results"]:
        part = row["part"]
        if part != previous:
            table.add_section()
            previous = part
        table.add_row(
            Text(_figure(row)),
            *(*_percent(row["value"], row["ci"]), str(row["n"]), str(row["clusters"])),
            style="bold" if row is first else "",
        )
    return table


def _figure(row: dict[str, Any]) -> str:
    return row["metric"] if row["part"] is None else f"{row['part']}: {row['metric']}"


def _table(title: str, names: Iterable[str], *columns: str) -> Table:
    """An empty table: names, then numbers."""
    first, *numbers = columns
    table = lean_table(title)
    add_names(table, first, names, most=20)
    add_numbers(table, *numbers)
    return table


def _percent(value: float, ends: Sequence[float] | None) -> tuple[str, str]:
    span = "–" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"
    return f"{100 * value:.2f}", span
