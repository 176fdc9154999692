"""`kvfix diagnose --only prefix`: does a text before the image change what the image values hold?

Each unit is probed under four conditions: no text, the right name of what the probe looks for,
the name of something else, and a neutral text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvfix.data.left_out import Attempts, LeftOut
from kvfix.data.units import UnitSet
from kvfix.diagnose.prefix.findings import PrefixRuns, prefix_findings, prefix_results
from kvfix.diagnose.prefix.texts import CONDITIONS, NoContrast, Prefixes, named, prefixes
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun, Tick, run_task, sample_path
from kvfix.mlm.load import Mlm, Prompt
from kvfix.ranks import agreed, check_alike, is_first
from kvfix.runs.recorder import left_out_of
from kvfix.runs.rows import ProbeRow, Rows
from kvfix.session import Part, Watch

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
            found = found.read()
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


def run_prefixes(
    units: UnitSet, mlm: Mlm, folder: Path, *, tick: Tick = lambda task: None
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
            mlm, kinds=("value",), position=False, prefix=texts[str(named(unit))].text(condition)
        )

    plain = _scored_plain(units, folder) if is_first() else None
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
    attempts = Attempts(len(units))
    read = [attempts.do(lambda i=i: named(units.load(i))) for i in range(len(units))]  # type: ignore[misc]
    found = {i: name for i, name in enumerate(read) if not isinstance(name, LeftOut)}
    check_alike("names of units", found)
    if not found:
        raise NoContrast(f"{units.task}: expected units that can be read, found none")
    names = {i: name for i, name in found.items() if name is not None}
    if len(names) < len(found):
        raise NoContrast(
            f"{units.task}: expected units that name what they show, found none; clips and "
            "groups have no such name"
        )
    return names


def _scored_plain(units: UnitSet, folder: Path) -> TaskRun | None:
    """The rows of a run that has scored the values of every unit without a prefix."""
    path, wanted = sample_path(folder, units), set(units.ids)
    rows = Rows(path, ProbeRow, lambda r: r.id in wanted and r.head is None and r.site == "value")
    left_out = left_out_of(units, path)
    done = {entry["id"] for entry in left_out} | {row.id for row in rows}
    return TaskRun(units, rows, left_out) if done == wanted else None


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
