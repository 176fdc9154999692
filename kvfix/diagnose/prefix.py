"""Does a text before the image change what the image values hold?

Each unit is probed under four conditions: no text, the right name of what the probe looks for,
the name of something else, and a neutral text. The three texts have one length in tokens, so that
they move the image by equally many positions; what differs between them is what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.left_out import Attempts, LeftOut
from kvfix.data.units import UnitSet
from kvfix.diagnose.best_layer import best_value_layer
from kvfix.eval.results import Table, site_result
from kvfix.eval.source import MlmSource
from kvfix.eval.stats.bootstrap import paired_bootstrap
from kvfix.eval.suite import TaskRun, Tick, run_task, sample_path
from kvfix.findings import Estimate, Finding, title
from kvfix.mlm.load import Mlm, Prompt
from kvfix.ranks import agreed, is_first
from kvfix.runs.recorder import left_out_of
from kvfix.runs.rows import ProbeRow, Result, Rows
from kvfix.session import Part, Watch

CONDITIONS = ("none", "correct", "wrong", "neutral")
# (after, before): what is compared. Only the first two are free of length and position.
CONTRASTS = (("correct", "neutral"), ("correct", "wrong"), ("correct", "none"), ("neutral", "none"))
TEMPLATE = "Look for: {}."
NEUTRAL_NAME = "thing"
FILLERS = (".", ",", "!", " .", " ,", " the", "\n")  # tried in turn


class NoContrast(ValueError):
    """Units whose names yield no texts to compare; the message says why."""


class Prefixes(NamedTuple):
    """The texts of one unit, all of `tokens` tokens."""

    correct: str
    wrong: str
    neutral: str
    tokens: int

    def text(self, condition: str) -> str | None:
        """The text of a condition; None under `none`."""
        return None if condition == "none" else getattr(self, condition)


def named(unit: Any) -> str | None:
    """What the probe looks for in a unit: the text it is given, or its class."""
    return getattr(unit, "text", None) or getattr(unit, "category", None)


def prefixes(count: Callable[[str], int], correct: str, others: Sequence[str]) -> Prefixes:
    """Texts of one length for a name, in tokens as `count` counts them.

    Of the other names the one closest in length is the wrong one; the shorter texts are then filled
    up at their front. NoContrast: no other name, or no filler that fits in this tokenizer.
    """
    wrong_names = [o for o in dict.fromkeys(others) if o != correct]
    if not wrong_names:
        raise NoContrast(
            f"expected a name other than {correct!r} among the units, found none; take more units"
        )
    length = count(TEMPLATE.format(correct))
    texts = [TEMPLATE.format(n) for n in wrong_names]
    wrong = min(texts, key=lambda t: abs(count(t) - length))
    three = [TEMPLATE.format(correct), wrong, TEMPLATE.format(NEUTRAL_NAME)]
    longest = max(count(t) for t in three)
    filled = [_filled(count, text, longest) for text in three]
    return Prefixes(filled[0], filled[1], filled[2], longest)


def _filled(count: Callable[[str], int], text: str, length: int) -> str:
    missing = length - count(text)
    for filler, space in product(FILLERS, (" ", "")):
        for times in range(missing + 1):
            longer = filler * times + space * (times > 0) + text
            if count(longer) == length:
                return longer
    raise NoContrast(
        f"expected a filler that brings {text!r} from {count(text)} to {length} tokens, found none "
        f"among {FILLERS}"
    )


class PrefixRuns(NamedTuple):
    """A task scored under every condition, and the exact order of one unit's prompt under each."""

    runs: dict[str, TaskRun]
    orders: dict[str, str]
    tokens: tuple[int, int]  # shortest and longest prefix


def run_prefixes(
    units: UnitSet,
    mlm: Mlm,
    folder: Path,
    *,
    kinds: Sequence[str] = ("value",),
    tick: Tick = lambda task: None,
) -> PrefixRuns:
    """Score a task under the four conditions, resumably: `samples/<task>.prefix_<condition>.jsonl`.

    No text before the image is what every other probe reads, too. Where the run has scored these
    units so already, their rows are taken, and a quarter of the work is saved. NoContrast: units
    without a name, all of one name, or none that can be read.
    """
    names = _names(units)
    texts = _texts(mlm, list(names.values()))

    def source_of(condition: str) -> Callable[[Any], MlmSource]:
        return lambda unit: MlmSource(
            mlm, kinds=kinds, position=False, prefix=texts[str(named(unit))].text(condition)
        )

    plain = _scored_plain(units, folder, kinds) if is_first() else None
    scored = {"none"} if agreed(lambda: plain is not None) else set()
    runs = {name: plain or TaskRun(units, (), []) for name in scored}
    for condition in CONDITIONS:
        if condition not in runs:
            runs[condition] = run_task(
                units, source_of(condition), folder, control=f"prefix_{condition}", tick=tick
            )
        else:
            for _ in units.ids:
                tick(units.task)
    lengths = [p.tokens for p in texts.values()]
    return PrefixRuns(runs, _orders(mlm, units, names, texts), (min(lengths), max(lengths)))


def _names(units: UnitSet) -> dict[int, str]:
    """What each readable unit names, by its index; the others are left out when they are scored."""
    names: dict[int, str] = {}
    attempts = Attempts(len(units))
    for i in range(len(units)):
        name = attempts.do(partial(_named, units, i))
        if isinstance(name, LeftOut):
            continue
        if name is None:
            raise NoContrast(
                f"{units.task}: expected units that name what they show, found none; clips and "
                "groups have no such name"
            )
        names[i] = name
    if not names:
        raise NoContrast(f"{units.task}: expected units that can be read, found none")
    return names


def _named(units: UnitSet, index: int) -> str | None:
    return named(units.load(index))


def _scored_plain(units: UnitSet, folder: Path, kinds: Sequence[str]) -> TaskRun | None:
    """The rows of a run that has scored every unit at these sites without a prefix."""
    path, wanted = sample_path(folder, units), set(units.ids)

    rows = Rows(path, ProbeRow, lambda r: r.id in wanted and r.head is None and r.site in kinds)
    left_out = left_out_of(units, path)
    sites: dict[str, set[str | None]] = {e["id"]: set(kinds) for e in left_out}
    for row in rows:
        sites.setdefault(row.id, set()).add(row.site)
    whole = {name for name, read in sites.items() if read == set(kinds)}
    return TaskRun(units, rows, left_out) if whole == wanted else None


def _texts(mlm: Mlm, names: Sequence[str]) -> dict[str, Prefixes]:
    tokenizer = mlm.processor.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    return {name: prefixes(count, name, names) for name in dict.fromkeys(names)}


def _orders(
    mlm: Mlm, units: UnitSet, names: dict[int, str], texts: dict[str, Prefixes]
) -> dict[str, str]:
    """The rendered prompts of the first unit that can be encoded; empty where none can."""
    attempts = Attempts(len(names), proven=True)  # the prompts are shown, nothing is made of them
    for index, name in names.items():
        found = attempts.do(partial(_rendered, mlm, units, index, texts[name]))
        if not isinstance(found, LeftOut):
            return found
    return {}


def _rendered(mlm: Mlm, units: UnitSet, index: int, texts: Prefixes) -> dict[str, str]:
    """The rendered prompt of a unit's image under each condition, placeholders included."""
    unit = units.load(index)
    image = next(
        getattr(unit, field) for field in ("image", "query", "source") if hasattr(unit, field)
    )
    said = getattr(unit, "text", "Describe the image.")
    return {
        c: mlm.encode([Prompt((image,), said, texts.text(c))]).order_texts[0] for c in CONDITIONS
    }


# Their units name what is looked for; in a pair the points do, not the name.
TASKS = ("foreground_segmentation", "semantic_segmentation", "referring_segmentation")


MOST_UNITS = 32  # a task, where the user sets no limit: four conditions cost four passes


def diagnose_prefix(
    unit_sets: Sequence[UnitSet],
    mlm: Mlm,
    folder: Path,
    *,
    limit: int | None,
    seed: int,
    watch: Watch,
) -> Part:
    """Score the tasks whose units have a name, under each condition, on `MOST_UNITS` without a
    limit.
    """
    named = [u.head(limit or MOST_UNITS) for u in unit_sets if u.task in TASKS]
    part, entries = Part(), []
    with watch.phase("text before the image", sum(map(len, named)) * len(CONDITIONS)) as tick:
        for units in named:
            try:
                found = run_prefixes(units, mlm, folder, tick=tick)
            except NoContrast as error:
                part.notes.append(f"Text before the image, {units.task}: not measured, {error}")
                continue
            if not is_first():
                continue
            part.results += prefix_results(found, seed=seed)
            part.findings += prefix_findings(found, seed=seed)
            part.left_out += [e for run in found.runs.values() for e in run.left_out]
            part.failed |= any(run.too_many_left_out for run in found.runs.values())
            entries.append(
                {
                    "task": units.task,
                    "dataset": units.dataset,
                    "n": len(units),
                    "prefix_tokens": found.tokens,
                    "orders": found.orders,
                }
            )
    part.entries = {"prefix": entries}
    return part


SAID = {
    "none": "no prefix",
    "correct": "the right name before the image",
    "wrong": "a wrong name",
    "neutral": "a neutral text",
}


def prefix_results(found: PrefixRuns, *, seed: int = 0) -> list[Result]:
    """Paired differences at every site, `control` naming the contrast (`correct-neutral`)."""
    results: list[Result] = []
    for after, before in CONTRASTS:
        pair = _pair(found, after, before)
        if pair is None:
            continue
        now, was = pair
        got = paired_bootstrap(was.score_NS, now.score_NS, now.clusters, seed=seed)
        results += [
            site_result(
                found.runs[after].units,
                site,
                f"{now.metric} difference",
                got,
                s,
                control=f"prefix {after} - {before}",
            )
            for s, site in enumerate(now.sites)
        ]
    return results


def _pair(found: PrefixRuns, after: str, before: str) -> tuple[Table, Table] | None:
    sides = [list(found.runs[c].rows) for c in (after, before)]
    shared = set.intersection(*({r.id for r in side} for side in sides))
    now, was = (Table(r for r in side if r.id in shared) for side in sides)
    return (now, was) if now.ids else None


def prefix_findings(found: PrefixRuns, *, seed: int = 0) -> list[Finding]:
    """What each contrast does at the value layer that is best without a prefix.

    The layer is chosen on one half of the clusters without a prefix, the difference is taken on the
    other half. Layer 0 has no say: its values come before any attention, so that no text can move
    them. Beside that the mean over all other layers, which chooses nothing, on all units.
    """
    plain = Table(row for row in found.runs["none"].rows if row.layer != 0)
    best = best_value_layer(plain, seed=seed) if plain.ids else None
    if best is None:
        return []
    reporting = {u for u, use in zip(plain.ids, best.report_N, strict=True) if use}
    findings = []
    for after, before in CONTRASTS:
        pair = _pair(found, after, before)
        if pair is not None:
            findings.append(_contrast(found, pair, (after, before), best.layer, reporting, seed))
    return findings


def _contrast(
    found: PrefixRuns,
    pair: tuple[Table, Table],
    names: tuple[str, str],
    layer: int,
    reporting: set[str],
    seed: int,
) -> Finding:
    now, was = pair
    rows = np.array([u in reporting for u in now.ids])
    column = next(c for c in now.columns("value") if now.sites[c].layer == layer)
    reached = [c for c in now.columns("value") if now.sites[c].layer != 0]
    here, everywhere = (
        Estimate.of(paired_bootstrap(*scores, clusters, seed=seed))
        for scores, clusters in (
            ([t.score_NS[rows, column] for t in (was, now)], list(compress(now.clusters, rows))),
            ([t.score_NS[:, reached].mean(1) for t in (was, now)], now.clusters),
        )
    )
    units = found.runs[names[0]].units
    words = (
        f"{SAID[names[0]]} against {SAID[names[1]]} moves {now.metric} of value layer {layer} by "
        f"{here.said(signed=True)}{here.doubt('no clear difference')}; the mean over layers from 1 "
        f"on by {everywhere.said(signed=True, n=False)} (n = {everywhere.n}"
        f"{', clear' if everywhere.clear else ''})."
    )
    ends = None if everywhere.ci is None else list(everywhere.ci)
    mean = {"value": everywhere.value, "ci": ends, "n": everywhere.n, "clear": everywhere.clear}
    return Finding(
        *(f"prefix.{names[0]}_{names[1]}", words, here, units.task, units.dataset),
        subject=title(units.task, units.dataset),
        clear=here.clear,
        more={"layer": layer, "mean_over_layers": mean},
    )
