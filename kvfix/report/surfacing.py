"""The surfacing part of a run as texts: one row a subtask and way of answering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvfix.findings import interval, number
from kvfix.report.columns import add_names, add_numbers, lean_table
from kvfix.report.stages import clean

if TYPE_CHECKING:
    from rich.table import Table

SHARES = ("readout", "answer", "of_all", "of_wrong", "shuffled")


def row(item: dict[str, Any]) -> dict[str, Any]:
    """The record of `kvfix.diagnose.surfacing.table` with its shares as texts in percent."""
    names = ("dataset", "subtask", "scoring", "layer", "n", "clear")
    texts = {name: _percent(item.get(name)) for name in SHARES}
    return (
        {name: item.get(name) for name in names}
        | texts
        | {"beyond": _percent(item.get("beyond"), signed=True), "training": training(item)}
    )


def training(item: dict[str, Any]) -> str:
    """What a trained readout learned from; empty for one without training."""
    given = item.get("training")
    if not isinstance(given, dict):
        return ""
    accuracy = number(given.get("cv_accuracy"))
    held = (
        ""
        if accuracy is None
        else f", right in {100 * accuracy:.0f} % of them held out at the best layer"
    )
    return (
        f"{given.get('n')} questions of the {given.get('split')} split, {given.get('folds')} folds"
        f"{held}"
    )


def table(run: dict[str, Any]) -> Table:
    """One row for each subtask and readout; in percent, at most 80 columns wide."""
    from rich.text import Text

    rows = list(_by_readout(clean(run)))
    shown = lean_table(
        "what the values hold and the answers do not say, in percent",
        "unsaid = readout right, answer wrong, beyond what features of other questions "
        "give; log-pr. = by the log-probability of the option letters; bold = clear",
    )
    add_names(shown, "task, readout", (f"{name}, {kind}" for name, kind, _ in rows), most=16)
    add_numbers(shown, "n", "readout\nright", "written\nright", "written\nunsaid")
    add_numbers(shown, "log-pr.\nright", "log-pr.\nunsaid")
    for name, kind, by in rows:
        written, likely = by.get("generation", {}), by.get("logprob", {})
        first = next(iter(by.values()))
        cells = [
            _percent(first.get("readout")),
            _value(written.get("answer")),
            _percent(written.get("beyond"), signed=True),
            _value(likely.get("answer")),
            _percent(likely.get("beyond"), signed=True),
        ]
        shown.add_row(
            Text(f"{name}, {kind}"),
            str(first.get("n")),
            *(cell.replace(" [", "\n[") for cell in cells),
            style="bold" if any(item.get("clear") for item in by.values()) else "",
        )
    return shown


def _by_readout(run: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, dict[str, Any]]]]:
    """(task, readout, scoring -> record), the trained readout after the one without training."""
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for key, word in (("surfacing", ""), ("surfacing_trained", "trained, ")):
        for item in run.get(key) or []:
            where = (str(item.get("dataset")), str(item.get("subtask")))
            kind = f"{word}L{item.get('layer')}"
            found.setdefault(where, {}).setdefault(kind, {})[str(item.get("scoring"))] = item
    for (dataset, subtask), kinds in found.items():
        name = subtask.replace("_", " ") + ("" if dataset == "scenes" else f" ({dataset})")
        for kind, by in kinds.items():
            yield name, kind, by


def _value(share: Any) -> str:
    value = number(share.get("value")) if isinstance(share, dict) else None
    return "–" if value is None else f"{100 * value:.0f}"


def _percent(share: Any, *, signed: bool = False) -> str:
    """`33 [20, 47]`; a dash where nothing is known."""
    given = share if isinstance(share, dict) else {}
    value, (low, high) = number(given.get("value")), interval(given.get("ci"))
    form = "+.0f" if signed else ".0f"
    if value is None:
        return "–"
    if low is None or high is None:
        return f"{100 * value:{form}}"
    return f"{100 * value:{form}} [{100 * low:{form}}, {100 * high:{form}}]"
