"""Run tasks over sites, unit by unit, onto disk; a second start goes on where the first stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from kvfix.data.left_out import naming, too_many
from kvfix.data.units import UnitSet, images_of
from kvfix.eval.probes.tasks import TASKS, Scores
from kvfix.eval.source import Source
from kvfix.ranks import dealt
from kvfix.runs.recorder import Recorder, left_out_of
from kvfix.runs.rows import ProbeRow, Rows

PROTOCOL = 2  # raise when the same features would get another score

Tick = Callable[[str], None]  # called with the task after each unit
SourceOf: TypeAlias = Source | Callable[[Any], Source]  # for all units, or made for each


class TaskRun(NamedTuple):
    """One task of one dataset, scored: its rows on disk, and what was left out and why.

    The units of readouts are the questions of one subtask.
    """

    units: UnitSet
    rows: Iterable[Any]  # scores, or answers; none is held
    left_out: list[dict[str, str]]
    subtask: str | None = None

    @property
    def too_many_left_out(self) -> bool:
        """Whether more than 5 % of the units were left out."""
        return too_many(len(self.left_out), len(self.units))


def sample_path(folder: Path, units: UnitSet, control: str | None = None) -> Path:
    """Where the samples of a task lie: `samples/<task>[.<dataset>][.<control>].jsonl`."""
    parts = [units.task]
    if units.dataset != "scenes":
        parts.append(units.dataset)
    if control is not None:
        parts.append(control)
    return folder / "samples" / (".".join(parts) + ".jsonl")


def run_task(
    units: UnitSet,
    source: SourceOf,
    folder: Path,
    *,
    control: str | None = None,
    tick: Tick = lambda task: None,
) -> TaskRun:
    """Score every unit that is not on disk yet; ranks of one launch share them.

    The source may be a function from a unit to one; `control` names what it stands for, None the
    model itself; `tick` is called after each unit, done before or now.
    """
    path = sample_path(folder, units, control)
    with Recorder(units, path) as recorder:
        for i in dealt(len(units), lambda i: tick(units.task)):
            recorder.unit(units.ids[i], partial(_score, units, i, source, control))
    wanted = set(units.ids)
    scored = Rows(path, ProbeRow, lambda row: row.id in wanted)
    return TaskRun(units, scored, left_out_of(units, path))


def _score(units: UnitSet, index: int, source: SourceOf, control: str | None) -> list[ProbeRow]:
    """The rows of one unit."""
    unit = units.load(index)
    with naming(images_of(unit)):
        mine = source(unit) if callable(source) else source
        scores = TASKS[units.task].run(unit, mine, None)
    return unit_rows(unit, units, scores, mine, control)


def unit_rows(
    unit: Any, units: UnitSet, scores: Scores, source: Source, control: str | None
) -> list[ProbeRow]:
    """A row for every site."""
    rows: list[ProbeRow] = []
    for kind, score in scores.items():
        for s, site in enumerate(source.sites(kind)):
            more = _extra(score.extra, s)
            if score.inter_S is not None and score.union_S is not None:
                more = {"inter": float(score.inter_S[s]), "union": float(score.union_S[s])} | more
            rows.append(
                ProbeRow(
                    unit.id,
                    unit.cluster,
                    units.task,
                    units.dataset,
                    **site._asdict(),
                    metric=TASKS[units.task].metric,
                    score=float(score.score_S[s]),
                    chance=float(score.chance_S[s]),
                    ceiling=score.ceiling,
                    control=control,
                    category=getattr(unit, "category", None),
                    more=more,
                )
            )
    return rows


def _extra(extra: dict[str, np.ndarray], s: int) -> dict[str, Any]:
    """Per-site extras under their plain names: arrays (S,) as numbers, (S, ...) as lists."""
    return {
        name.split("_S")[0]: values[s].tolist()
        for name, values in extra.items()
        if name != "window"
    }


def run_suite(
    unit_sets: Sequence[UnitSet],
    source: Source,
    folder: Path,
    *,
    control: str | None = None,
    tick: Tick = lambda task: None,
) -> list[TaskRun]:
    """Every task in turn; see `run_task`."""
    return [run_task(u, source, folder, control=control, tick=tick) for u in unit_sets]
