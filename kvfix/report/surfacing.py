"""The surfacing part of a run as texts: one row a subtask and way of answering."""

from __future__ import annotations

from typing import Any

from kvfix.report.stages import interval, number

SHARES = ("readout", "answer", "of_all", "of_wrong", "shuffled")


def row(item: dict[str, Any]) -> dict[str, Any]:
    """The record of `kvfix.diagnose.surfacing` with its shares as texts in percent."""
    names = ("dataset", "subtask", "scoring", "layer", "n", "clear")
    texts = {name: _percent(item.get(name)) for name in SHARES}
    return (
        {name: item.get(name) for name in names}
        | texts
        | {"beyond": _percent(item.get("beyond"), signed=True)}
    )


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
