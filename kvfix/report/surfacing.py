"""The surfacing part of a run as texts: one row a subtask and way of answering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvfix.report.stages import clean, interval, number

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
    """One row a subtask and readout, at most 100 columns wide; percent."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title="what the values hold and the answers do not say, in percent",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for name in ("task", "readout"):
        shown.add_column(name, overflow="fold")
    shown.add_column("n", justify="right", no_wrap=True)
    for name in ("readout\nright", "written\nright", "unsaid\nbeyond chance"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("log-pr.\nright", "unsaid\nbeyond chance"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, kind, by in _by_readout(clean(run)):
        written, likely = by.get("generation", {}), by.get("logprob", {})
        shown.add_row(
            Text(name),
            Text(kind),
            str(next(iter(by.values())).get("n")),
            _percent(next(iter(by.values())).get("readout")),
            _value(written.get("answer")),
            _percent(written.get("beyond"), signed=True),
            _value(likely.get("answer")),
            _percent(likely.get("beyond"), signed=True),
            style="bold" if any(item.get("clear") for item in by.values()) else "",
        )
    shown.caption = (
        "unsaid = readout right, answer wrong; beyond what features of other questions give; "
        "bold = clear"
    )
    shown.caption_justify = "left"
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
