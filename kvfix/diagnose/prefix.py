"""Does a text before the image change what the image values hold?

Each unit is probed under four conditions: no text, the right name of what the probe looks for,
the name of something else, and a neutral text. The three texts have one length in tokens, so that
they move the image by equally many positions; what differs between them is what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.units import UnitSet
from kvfix.diagnose.flow import (
    FEWEST_CLUSTERS,
    Finding,
    best_value_layer,
)
from kvfix.eval.results import Result, Table, site_result
from kvfix.eval.source import MlmSource
from kvfix.eval.stats import paired_bootstrap
from kvfix.eval.suite import TaskRun, Tick, run_task
from kvfix.models import Mlm, Prompt

CONDITIONS = ("none", "correct", "wrong", "neutral")
# (after, before): what is compared. Only the first two are free of length and position.
CONTRASTS = (("correct", "neutral"), ("correct", "wrong"), ("correct", "none"), ("neutral", "none"))
TEMPLATE = "Look for: {}."
NEUTRAL_NAME = "thing"
FILLERS = (".", ",", "!", " .", " ,", " the", "\n")  # tried in turn


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
    """Texts of one length for a name.

    Of the other names the one closest in length is the wrong one; the shorter texts are then
    filled up at their front.

    Args:
        count: text -> its number of tokens.
        correct: the right name.
        others: names of other things; at least one differs from `correct`.

    Raises:
        ValueError: no other name, or no filler that fits in this tokenizer.
    """
    wrong_names = [o for o in dict.fromkeys(others) if o != correct]
    if not wrong_names:
        raise ValueError(f"expected a name other than {correct!r} among the units, found none")
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
    raise ValueError(
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

    Args:
        units: of a task whose units have a class or a text.
        mlm: the model.
        folder: the run folder.
        kinds: sites to read.
        tick: called after each unit and condition.

    Raises:
        ValueError: units without a name, or all of one name.
    """
    names = [named(units.load(i)) for i in range(len(units))]
    if None in names:
        raise ValueError(
            f"{units.task}: expected units that name what they show, found none; clips and groups "
            "have no such name"
        )
    texts = _texts(mlm, [str(n) for n in names])

    def source_of(condition: str) -> Callable[[Any], MlmSource]:
        return lambda unit: MlmSource(
            mlm, kinds=kinds, position=False, prefix=texts[str(named(unit))].text(condition)
        )

    runs = {
        condition: run_task(
            units, source_of(condition), folder, control=f"prefix_{condition}", tick=tick
        )
        for condition in CONDITIONS
    }
    lengths = [p.tokens for p in texts.values()]
    return PrefixRuns(runs, _orders(mlm, units, texts[str(names[0])]), (min(lengths), max(lengths)))


def _texts(mlm: Mlm, names: Sequence[str]) -> dict[str, Prefixes]:
    tokenizer = mlm.processor.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    return {name: prefixes(count, name, names) for name in dict.fromkeys(names)}


def _orders(mlm: Mlm, units: UnitSet, texts: Prefixes) -> dict[str, str]:
    """The rendered prompt of a unit's image under each condition, placeholders included."""
    unit = units.load(0)
    image = next(
        getattr(unit, field) for field in ("image", "query", "source") if hasattr(unit, field)
    )
    said = getattr(unit, "text", "Describe the image.")
    return {
        c: mlm.encode([Prompt((image,), said, texts.text(c))]).order_texts[0] for c in CONDITIONS
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
        units = found.runs[after].units
        results += [
            site_result(
                units,
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
    """Two conditions over the units that both scored, in one order."""
    sides = [list(found.runs[c].rows) for c in (after, before)]
    shared = set.intersection(*({r["id"] for r in side} for side in sides))
    now, was = (Table(r for r in side if r["id"] in shared) for side in sides)
    return (now, was) if now.ids else None


def prefix_findings(found: PrefixRuns, *, seed: int = 0) -> list[Finding]:
    """What each contrast does at the value layer that is best without a prefix.

    The layer is chosen on one half of the clusters without a prefix, the difference is taken on
    the other half.
    """
    plain = Table(found.runs["none"].rows)
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
    got = paired_bootstrap(
        was.score_NS[rows, column],
        now.score_NS[rows, column],
        [c for c, use in zip(now.clusters, rows, strict=True) if use],
        seed=seed,
    )
    value, low, high = (float(x[0]) for x in (got.value_S, got.low_S, got.high_S))
    enough = int(got.clusters_S[0]) >= FEWEST_CLUSTERS
    clear = enough and (low > 0 or high < 0)
    units = found.runs[names[0]].units
    task = units.task.replace("_", " ").capitalize()
    where = "" if units.dataset == "scenes" else f" ({units.dataset})"
    what = {
        "none": "no prefix",
        "correct": "the right name before the image",
        "wrong": "a wrong name",
        "neutral": "a neutral text",
    }
    certain = "" if clear else " (no clear difference)" if enough else " (too few clusters to tell)"
    text = (
        f"{task}{where}: {what[names[0]]} against {what[names[1]]} moves {now.metric} of value "
        f"layer {layer} by {value:+.3f} [{low:+.3f}, {high:+.3f}] (n = {int(got.n_S[0])})"
        f"{certain}."
    )
    return {
        "id": f"prefix.{names[0]}_{names[1]}",
        "text": text,
        "task": units.task,
        "dataset": units.dataset,
        "value": value,
        "ci": None if np.isnan(low) else [low, high],
        "n": int(got.n_S[0]),
        "layer": layer,
        "clear": clear,
    }
