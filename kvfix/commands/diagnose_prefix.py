"""`kvfix diagnose --only prefix`: probes under four texts before the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvfix.commands.session import Part, Watch
from kvfix.data.units import UnitSet
from kvfix.diagnose.prefix import CONDITIONS, NoContrast, run_prefixes
from kvfix.diagnose.prefix_findings import prefix_findings, prefix_results
from kvfix.models import Mlm

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
    """Score the tasks whose units have a name, under each condition.

    Args:
        unit_sets: of the run; those without names are passed over.
        mlm: the model.
        folder: the run folder.
        limit: units a task that the user asked for, None for `MOST_UNITS`.
        seed: of halves and bootstrap.
        watch: told how far it is.
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
