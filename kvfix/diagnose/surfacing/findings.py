"""What one subtask says: how much of what its values hold does not surface in the answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvfix.data.units import MCQ
from kvfix.diagnose.surfacing.table import Share, Surfacing
from kvfix.eval.results import Table
from kvfix.findings import Estimate, Finding


def surfacing_result(
    found: Surfacing, table: Table, *, dataset: str, subtask: str, scoring: str
) -> dict[str, Any]:
    """The record of one subtask for run.json."""
    numbers = {
        name: {"value": None if np.isnan(share.value) else share.value, "ci": share.ci}
        for name in ("readout", "answer", "of_all", "of_wrong", "shuffled", "beyond")
        for share in (getattr(found, name),)
    }
    site = table.sites[found.column]
    names = ("both_right", "unsurfaced", "answer_alone", "neither")
    return {
        "dataset": dataset,
        "subtask": subtask,
        "scoring": scoring,
        **site._asdict(),
        "held_out": found.held_out,
        "n": found.n,
        "counts": dict(zip(names, found.counts, strict=True)),
        "chance": found.chance,
        **numbers,
        "clear": found.clear,
        "examples": list(found.examples),
    }


def surfacing_finding(
    found: Surfacing,
    table: Table,
    *,
    dataset: str,
    subtask: str,
    scoring: str,
    trained: str | None = None,
) -> Finding:
    """The sentence on a subtask; `trained` says on what a readout was, and how its layer was
    chosen.
    """
    site = table.sites[found.column]
    where = subtask.replace("_", " ") + ("" if dataset == "scenes" else f" ({dataset})")
    how = "written answer" if scoring == "generation" else "answer by log-probability"
    chosen = "chosen on the other half" if found.held_out else "too few questions to split"
    readout = "readout" if trained is None else "trained readout"
    certain = "beyond" if found.clear else "not clearly beyond"
    words = (
        f"{where}: in {_percent(found.of_all)} of {found.n} questions the {readout} of {site.site} "
        f"layer {site.layer} ({trained or chosen}) is right and the {how} wrong, in "
        f"{_percent(found.of_wrong)} of the wrong answers; {certain} the "
        f"{100 * found.shuffled.value:.0f} % of shuffled features "
        f"(difference {_percent(found.beyond, signed=True)})."
    )
    value, ends = found.of_all.value, found.of_all.ci
    return Finding(
        f"surfacing{'' if trained is None else '_trained'}.{scoring}",
        words,
        Estimate(value, None if ends is None else (ends[0], ends[1]), found.n),
        MCQ,
        dataset,
        clear=found.clear,
        percent=True,
        more={"subtask": subtask},
    )


def _percent(share: Share, *, signed: bool = False) -> str:
    form = "+.0f" if signed else ".0f"
    if np.isnan(share.value):
        return "none"
    if np.isnan(share.low):
        return f"{100 * share.value:{form}} %"
    return f"{100 * share.value:{form}} % [{100 * share.low:{form}}, {100 * share.high:{form}}]"
