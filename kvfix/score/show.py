"""What the terminal shows after `kvfix score`: a table a benchmark, and what was odd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 5  # ids in a note before it only counts


def blink_table(record: dict[str, Any]) -> Table:
    """One row a task, then micro and macro; accuracies and unparsed rates in percent."""
    from rich.text import Text

    by = "parsed letters of the dump" if record["parsed"] else "answers extracted"
    table = _table(f"BLINK, {by}, profile {record['profile']} ({record['follows']})")
    letters = [name for name in record["letters"] if name != "unparsed"]
    for name in ("task", "accuracy", "95 % CI", "n", "unparsed", *letters):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for name, task in record["tasks"].items():
        table.add_row(Text(name.replace("_", " ")), *_blink_cells(task, task["accuracy"], letters))
    table.add_section()
    table.add_row("micro", *_blink_cells(record | {"ci": record["micro_ci"]}, None, letters))
    ends = "–" if record["macro_ci"] is None else _percent_span(record["macro_ci"])
    table.add_row("macro", f"{100 * record['macro']:.2f}", ends, str(record["n"]), style="bold")
    answers = ", ".join(f"{x} {n}" for x, n in record["answers"].items())
    table.caption = f"letters of the right answers: {answers}"
    return table


def _blink_cells(row: dict[str, Any], accuracy: float | None, letters: Sequence[str]) -> list[str]:
    value = row["micro"] if accuracy is None else accuracy
    return [
        f"{100 * value:.2f}",
        "–" if row["ci"] is None else _percent_span(row["ci"]),
        str(row["n"]),
        f"{100 * row['unparsed_rate']:.1f} %",
        *(str(row["letters"].get(x, 0)) for x in letters),
    ]


def blink_notes(record: dict[str, Any]) -> Iterator[str]:
    """What the reader must know about the predictions, a line each."""
    for key, what in (
        ("missing", "questions without a prediction, which count as wrong"),
        ("not_text", "predictions that are null or not text, which count as wrong"),
        ("unknown", "predictions for questions that the answers do not have, left out"),
        ("disagreeing", "right answers in the dump that the answer file, which counts, denies"),
    ):
        if ids := record[key]:
            yield f"{what}: {len(ids)} ({_some(ids)})"
    yield from record["notes"]
    if record["repeated"]:
        yield f"further copies of a prediction, all equal: {record['repeated']}"


def davis_table(record: dict[str, Any]) -> Table:
    """One row a sequence, then the mean over objects."""
    from rich.text import Text

    name = record["benchmark"].replace("davis", "DAVIS-")
    table = _table(f"{name} semi-supervised, means over objects")
    measures = list(record["ci"])
    table.add_column("sequence", overflow="fold")
    for name in ("objects", *(m.replace("-", "\n") for m in measures)):
        table.add_column(name, justify="right", no_wrap=True)
    for name, sequence in record["sequences"].items():
        figures = (f"{sequence[m]:.3f}" for m in measures)
        table.add_row(Text(name), str(len(sequence["objects"])), *figures)
    table.add_section()
    table.add_row(
        "all", str(record["n_objects"]), *(f"{record[m]:.3f}" for m in measures), style="bold"
    )
    spans = [record["ci"][m] for m in measures]
    for end, what in enumerate(("95 % CI, low", "95 % CI, high")):
        cells = ("–" if span is None else f"{span[end]:.3f}" for span in spans)
        table.add_row(what, "", *cells, style="dim")
    return table


def davis_notes(record: dict[str, Any]) -> Iterator[str]:
    """What was left out, a line each."""
    if names := record["ignored"]:
        yield f"folders of no sequence of the truth, ignored: {len(names)} ({_some(names)})"


TITLES = {
    "spair71k": "SPair-71k, percentage of correct keypoints",
    "refcoco": "RefCOCO, referring segmentation",
    "pascal5i": "Pascal-5i, five-shot, means over folds",
    "imagenet_s": "ImageNet-S, all classes and background",
    "msrc": "MSRC co-segmentation, means over groups",
}


def figures_table(record: dict[str, Any]) -> Table:
    """One row a figure: first those of all units, then those of parts; in percent."""
    from rich.text import Text

    [data] = record["data"]
    title = TITLES[record["benchmark"]] + f", {data['split']}"
    table = _table(title + (f", rule of {record['profile']}" if "profile" in record else ""))
    for name in (
        "metric",
        "value",
        "95 % CI",
        "n",
        f"clusters ({record['results'][0]['cluster']})",
    ):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    previous = None
    for row in record["results"]:
        if row["part"] != previous:
            table.add_section()
            previous = row["part"]
        ends = "–" if row["ci"] is None else _percent_span(row["ci"])
        table.add_row(
            Text(row["metric"] if row["part"] is None else f"{row['part']}: {row['metric']}"),
            *(f"{100 * row['value']:.2f}", ends, str(row["n"]), str(row["clusters"])),
            style="bold" if row is record["results"][0] else "",
        )
    return table


def unit_notes(record: dict[str, Any]) -> Iterator[str]:
    """What the reader must know about predictions and truth, a line each."""
    if ids := record["missing"]:
        yield f"no prediction, counted as empty: {len(ids)} ({_some(ids)})"
    if ids := record["unknown"]:
        yield f"predictions of no unit of this data, left out: {len(ids)} ({_some(ids)})"
    for entry in record["left_out"][:_SHOWN]:
        yield f"left out {entry['id']}: {entry['why']}"
    if (more := len(record["left_out"]) - _SHOWN) > 0:
        yield f"{more} more units left out"
    yield from record["notes"]


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        header_style="bold",
    )


def _percent_span(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
