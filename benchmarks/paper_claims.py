"""The findings of arXiv 2510.04819, and how a model's runs are asked for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

UNTESTED = "cannot be tested"
ONE_LETTER = 0.9  # share of one letter among a task's answers from which they tell nothing

Row = dict[str, Any]


class Cell(NamedTuple):
    """What a model says to a finding of the paper."""

    verdict: str
    figure: str


class Claim(NamedTuple):
    """A finding of the paper, and how a model's records are asked for it."""

    paper: str
    ask: Callable[[list[Row]], Cell]


def found(records: Sequence[Row], *ids: str) -> list[Row]:
    """Findings by their id; of a prefix that two runs measured, the one of more units."""
    every = [f for record in records for f in record["findings"] if f["id"] in ids]
    most: dict[tuple[str, str, str], Row] = {}
    for f in every:
        name = (f["id"], f["task"], f["dataset"])
        if name not in most or f["n"] > most[name]["n"]:
            most[name] = f
    return [f for f in every if not f["id"].startswith("prefix.") or f in most.values()]


def by_sign(items: Sequence[Row], sign: int, *, of: int | None = None) -> str:
    """How many findings are clear in the paper's direction; `of` counts tasks without one too."""
    n = len(items) if of is None else of
    if not n:
        return UNTESTED
    yes = sum(1 for f in items if f["clear"] and sign * f["value"] > 0)
    against = sum(1 for f in items if f["clear"] and sign * f["value"] < 0)
    told = "reproduced" if yes == n else f"in {yes} of {n}" if yes else "not reproduced"
    return told + (f", the opposite in {against}" if against else "")


def _flow(name: str, sign: int) -> Callable[[list[Row]], Cell]:
    """A finding of every probe; the figure is each probe's."""

    def ask(records: list[Row]) -> Cell:
        peaks = found(records, "flow.peak")
        if not peaks:
            return Cell(UNTESTED, "not run")
        items = found(records, name)
        without = {f["task"] for f in peaks} - {f["task"] for f in items}
        if name == "flow.lm_gain":  # probes by text have no projector to gain on
            peaks = [f for f in peaks if f["task"] not in without]
        return Cell(by_sign(items, sign, of=len(peaks)), extent(items))

    return ask


def _keys(records: list[Row]) -> Cell:
    shares = found(records, "keys.share")
    if not shares:
        return Cell(UNTESTED, "not run")
    [share] = shares[:1]
    keys = next(r["keys"] for r in records if "keys" in r)
    split = keys["split_from"]
    told = "reproduced" if share["clear"] and split is not None else "not reproduced"
    layers = "no layer splits" if split is None else f"split from layer {split} on"
    return Cell(told, f"share {plain(share)}, {layers}")


def _has_agnostic(records: list[Row]) -> bool | None:
    keys = [r["keys"] for r in records if "share_by_layer" in (r.get("keys") or {})]
    return any(any(k["share_by_layer"]) for k in keys) if keys else None


def _of_keys(sign: int, *ids: str) -> Callable[[list[Row]], Cell]:
    """What agnostic keys do; without one there is nothing to test, and the lowest r stands in."""

    def ask(records: list[Row]) -> Cell:
        has = _has_agnostic(records)
        if has is None:
            return Cell(UNTESTED, "not run")
        items = [f for f in found(records, *ids) if f["value"] is not None]
        figures = "; ".join(f"{_what(f)} {signed(f)}" for f in items)
        if not has:
            return Cell(UNTESTED, f"no agnostic key; at the 5 % with the lowest r {figures}")
        return Cell(by_sign(items, sign), figures)

    return ask


def extent(items: Sequence[Row]) -> str:
    """Lowest and highest of several differences; each has its interval in a table of its own."""
    values = [f["value"] for f in items]
    return f"{min(values):+.3f} to {max(values):+.3f}" if values else "none"


def _what(finding: Row) -> str:
    for word in ("log-probability of the right option", "accuracy by log-probability", "IoU"):
        if word in finding["text"]:
            return word
    return "accuracy of the values"


def _prefix(records: list[Row]) -> Cell:
    items = found(records, "prefix.correct_neutral", "prefix.correct_wrong")
    if not items:
        return Cell(UNTESTED, "not run")
    means = [f["mean_over_layers"] for f in items]
    told = by_sign(items, +1)
    over_all = f"mean over layers: {by_sign(means, +1)}, {extent(means)}"
    return Cell(told, f"{extent(items)}; {over_all}")


def _surfacing(*subtasks: str) -> Callable[[list[Row]], Cell]:
    """Unsurfaced by log-probability: answers that could not be read are no failure to perceive.

    A model that gives one letter whatever it is shown says nothing of what it sees, so that all
    that is readable counts as unsurfaced: there the finding cannot be tested.
    """

    def ask(records: list[Row]) -> Cell:
        items = [
            {"clear": s["clear"], "value": s["beyond"]["value"], "from": r} | {"said": s}
            for r in records
            for s in r.get("surfacing") or []
            if s["subtask"] in subtasks and s["scoring"] == "logprob"
        ]
        if not items:
            return Cell(UNTESTED, "not run")
        told, varied = [], []
        for item in items:
            s = item["said"]
            constant = _one_letter(item["from"], s)
            if constant < ONE_LETTER:
                varied.append(item)
            told.append(
                f"{s['subtask'].replace('_', ' ')} {percent(s['of_all'])}, beyond shuffled "
                f"{percent(s['beyond'], sign='+')}"
                + (f" (one letter in {100 * constant:.0f} %)" if constant >= ONE_LETTER else "")
            )
        return Cell(by_sign(varied, +1), "; ".join(told))

    return ask


def _one_letter(record: Row, surfacing: Row) -> float:
    """The share of the letter that a subtask's answers give most often."""
    keys = ("dataset", "subtask", "scoring")
    [row] = [
        r
        for r in record["results"]
        if r["metric"] == "accuracy"
        and r["task"] == "mcq"
        and all(r[k] == surfacing[k] for k in keys)
    ]
    return max(row["letters"].values()) / row["n"]


CLAIMS = (
    Claim(
        "Image values suffice for every probe (here: beat random weights)",
        _flow("flow.random_weights", +1),
    ),
    Claim("The LM adds to what the projector passes in", _flow("flow.lm_gain", +1)),
    Claim("Later layers degrade it", _flow("flow.late_loss", -1)),
    Claim(
        "The LM holds less than SigLIP before fine-tuning",
        lambda records: Cell(UNTESTED, "no encoder from before the fine-tuning"),
    ),
    Claim("Later layers split into input-dependent and input-agnostic keys", _keys),
    Claim("Values at agnostic keys are worse", _of_keys(-1, "keys.values_random")),
    Claim("Blocking agnostic keys helps answers", _of_keys(+1, "keys.block_text")),
    Claim("Blocking agnostic keys helps values", _of_keys(+1, "keys.block_image")),
    Claim("A text before the image improves image values", _prefix),
    Claim("Art Style: 33.3 % of questions unsurfaced (BLINK)", _surfacing("Art_Style")),
    Claim("More is perceived than surfaces (similarity)", _surfacing("Visual_Similarity")),
    Claim(
        "More is perceived than surfaces (correspondence; its letters no nano reads, letters.py)",
        _surfacing("Visual_Correspondence", "Semantic_Correspondence"),
    ),
)


def short(task: str) -> str:
    """`semantic_segmentation` -> `semantic seg.`."""
    return task.replace("_", " ").replace("segmentation", "seg.").replace("correspondence", "corr.")


def signed(item: Row) -> str:
    """`+0.014 [-0.006, +0.026]`."""
    return f"{item['value']:+.3f} {span(item['ci'], '+')}"


def plain(item: Row) -> str:
    """`0.014 [0.006, 0.026]`."""
    return f"{item['value']:.3f} {span(item['ci'], '')}"


def span(ci: Any, sign: str = "+") -> str:
    """An interval as text."""
    return "[no interval]" if ci is None else f"[{ci[0]:{sign}.3f}, {ci[1]:{sign}.3f}]"


def percent(share: Row, sign: str = "") -> str:
    """A share in percent."""
    if share["value"] is None:
        return "–"
    ends = (
        ""
        if share["ci"] is None
        else " [{:{s}.0f}, {:{s}.0f}]".format(*(100 * x for x in share["ci"]), s=sign)
    )
    return f"{100 * share['value']:{sign}.0f}{ends}"
