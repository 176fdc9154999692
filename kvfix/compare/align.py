"""Two run folders, unit by unit: what may be compared, and what is in one of them only.

Rows of a control are left alone. Shapes: N units that both runs scored, S sites that both scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.groups import grouped
from kvfix.data.json_object import LINE, json_object
from kvfix.eval.results import Table
from kvfix.eval.site import Site
from kvfix.eval.stats.paired import Ratio
from kvfix.runs.fingerprint import flat, not_recorded
from kvfix.runs.resume import read_finished
from kvfix.runs.rows import (
    AnswerRow,
    LeftOutRow,
    Row,
    ScoreRow,
    WithoutReadoutRow,
    from_json,
    full_name,
)

# The same answers or features would get another score: no difference between the models.
RULES = ("benchmark", "protocol", "profile", "parsed", "mcq.profile", "mcq.version")

# Sums that rows may carry, and what their ratio over all units is called. Where the benchmark's
# own figure is a mean over classes, the ratio is pooled within each class.
POOLS = {("inter", "union"): "pooled IoU", ("correct", "points"): "PCK per point"}
BY_CLASS = ("foreground_segmentation", "semantic_segmentation")


class Name(NamedTuple):
    """What is compared apart."""

    task: str
    dataset: str
    subtask: str | None = None  # of readouts; answers of all subtasks are compared together

    def __str__(self) -> str:
        return f"{full_name(self.task, self.subtask)} ({self.dataset})"

    @property
    def entries(self) -> dict[str, Any]:
        """Its fields for JSON."""
        return {key: value for key, value in self._asdict().items() if value is not None}


@dataclass
class Side:
    """One run: its record and its rows by name; `left_out` is unit -> why."""

    folder: Path
    record: dict[str, Any]
    probes: dict[Name, list[ScoreRow]] = field(default_factory=dict)
    questions: dict[Name, list[AnswerRow]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pooled:
    """A ratio of sums over units before and after; with `classes` the mean of a ratio a class."""

    metric: str
    before: Ratio
    after: Ratio
    classes: list[str] | None  # one a unit


@dataclass(frozen=True)
class ProbePair:
    """One probe on the units and sites that both runs scored, in the order of BEFORE."""

    name: Name
    metric: str
    whole_before: Table  # every unit of BEFORE: what its own report chose the best layer on
    ids: list[str]
    clusters: list[str]
    sites: list[Site]
    before_NS: np.ndarray
    after_NS: np.ndarray
    pooled: Pooled | None  # where the rows carry sums


@dataclass(frozen=True)
class QuestionPair:
    """The questions of one dataset that both runs answered."""

    dataset: str
    before: list[AnswerRow]
    after: list[AnswerRow]


@dataclass(frozen=True)
class Pairing:
    """All that two runs share, and a list of what they do not."""

    probes: list[ProbePair]
    questions: list[QuestionPair]
    units: list[dict[str, Any]]  # for each name: shared, only_before, only_after, why
    notes: list[str]


def read_side(folder: Path) -> Side:
    """Read a finished run; a line that is no sample is a ValueError with file and line."""
    side = Side(folder, read_finished(folder))
    files = sorted((folder / "samples").glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected samples/*.jsonl in a run folder, found none")
    named = {str(d.get("dataset")) for d in _data_cards(side.record)}
    fallback = named.pop() if len(named) == 1 else "questions"
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            where = f"{file}:{number}"
            item = json_object(line, where, expected=LINE)
            _place(side, from_json(item, where), fallback)
    return side


def pair(before: Side, after: Side) -> Pairing:
    """Align two runs by (task, dataset, site, layer, head, id).

    Other data or rules of scoring, or nothing that both runs scored, are a ValueError.
    """
    _same_rules(before, after)
    _same_data(before, after)
    pairing = Pairing([], [], [], [])
    for name in _union(before.questions, after.questions):
        rows = [_by_id(s.questions.get(name, []), s.folder) for s in (before, after)]
        shared = _list_units(pairing, name, before, after, *rows)
        if shared:
            was, now = ([side[i] for i in shared] for side in rows)
            for a, b in zip(was, now, strict=True):
                _same(f"question {a.id}", ("subtask", "answer", "cluster"), a, b)
            pairing.questions.append(QuestionPair(name.dataset, was, now))
    for name in _union(before.probes, after.probes):
        units = [_by_unit(s.probes.get(name, []), s.folder) for s in (before, after)]
        shared = _list_units(pairing, name, before, after, *units)
        if shared:
            for i in shared:
                one, other = (side[i][0] for side in units)
                _same(f"{name.task}, unit {i}", ("cluster", "metric"), one, other)
            pairing.probes.append(_probe(name, before, after, shared, pairing.notes))
    if not pairing.questions and not pairing.probes:
        raise ValueError(
            f"expected units that both runs scored, found none: {before.folder} holds "
            f"{_holds(before)}; {after.folder} holds {_holds(after)}"
        )
    return pairing


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything but the data in which the fingerprints of two records differ, key by key.

    What an older kvfix did not record is no difference; `not_recorded` names it.
    """
    then, now = (fingerprint_of(r) for r in (before, after))
    skipped = {"data", *not_recorded(then, now), *not_recorded(now, then)}
    was, now = flat(then), flat(now)
    return [
        {"key": key, "before": was.get(key), "after": now.get(key)}
        for key in _union(was, now)
        if key.partition(".")[0] not in skipped and was.get(key) != now.get(key)
    ]


def fingerprint_of(record: dict[str, Any]) -> dict[str, Any]:
    """What moved the scores of a run, as far as its record says so."""
    found = record.get("fingerprint")
    return found if isinstance(found, dict) else {}


def _same_rules(before: Side, after: Side) -> None:
    for item in differences(before.record, after.record):
        if item["key"] in RULES and None not in (item["before"], item["after"]):
            raise ValueError(
                f"{item['key']}: expected the same before and after, found {item['before']!r} in "
                f"{before.folder} and {item['after']!r} in {after.folder}; the same answers would "
                "get other scores, so score both in one way"
            )


def _same_data(before: Side, after: Side) -> None:
    """Equal fingerprints wherever both runs name the same data; `n` may differ (`--limit`)."""
    was, now = (_data(s.record) for s in (before, after))
    for name in was.keys() & now.keys():
        if was[name] != now[name]:
            raise ValueError(
                f"{name}: expected the same data before and after, found {was[name]} in "
                f"{before.folder} and {now[name]} in {after.folder}"
            )


def _data(record: dict[str, Any]) -> dict[str, str]:
    found = {
        f"{d.get('dataset')}/{d.get('task', 'all')}": f"split {d.get('split')}, SHA-256 "
        f"{d.get('sha256')}"
        for d in _data_cards(record)
    }
    if not found:
        raise ValueError('run.json: expected a list "data" with SHA-256 digests, found none')
    return found


def _data_cards(record: dict[str, Any]) -> list[dict[str, Any]]:
    entries = record.get("data")
    return [d for d in entries if isinstance(d, dict)] if isinstance(entries, list) else []


def _place(side: Side, row: Row, dataset: str) -> None:
    if isinstance(row, LeftOutRow):
        side.left_out[row.id] = row.left_out
    elif isinstance(row, WithoutReadoutRow) or row.control is not None:
        return
    elif isinstance(row, AnswerRow):
        name = Name(row.task, row.dataset or dataset)
        side.questions.setdefault(name, []).append(row)
    else:
        name = Name(row.task, row.dataset, row.subtask)
        side.probes.setdefault(name, []).append(row)


def _by_id(rows: Sequence[AnswerRow], folder: Path) -> dict[str, AnswerRow]:
    found: dict[str, AnswerRow] = {}
    for row in rows:
        if found.setdefault(row.id, row) is not row:
            raise ValueError(f"{folder}: expected question {row.id} once, found it again")
    return found


def _by_unit(rows: Sequence[ScoreRow], folder: Path) -> dict[str, list[ScoreRow]]:
    found = grouped(rows, lambda row: row.id)
    for name, unit in found.items():
        n = unit[0].rows
        if len({(r.site, r.layer, r.head) for r in unit}) < len(unit) or len(unit) != (
            n or len(unit)
        ):
            raise ValueError(
                f"{folder}: expected one line a site for unit {name} and {n} "
                f"lines in all, found {len(unit)}; start the run's command again"
            )
    return found


def _list_units(
    pairing: Pairing, name: Name, before: Side, after: Side, was: dict, now: dict
) -> list[str]:
    """Note what is in one run only; the ids of the others, in the order of BEFORE."""
    shared = [i for i in was if i in now]
    only = [i for i in was if i not in now], [i for i in now if i not in was]
    why = {
        i: s.left_out[i] for s in (before, after) for i in (*only[0], *only[1]) if i in s.left_out
    }
    pairing.units.append(
        {
            **name.entries,
            "shared": len(shared),
            "only_before": only[0],
            "only_after": only[1],
            "why": why,
        }
    )
    return shared


def _same(what: str, keys: Sequence[str], before: Any, after: Any) -> None:
    for key in keys:
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            raise ValueError(
                f"{what}: expected the same {key} before and after, found {was!r} and "
                f"{now!r}; these are not the same data"
            )


def _probe(name: Name, before: Side, after: Side, shared: list[str], notes: list[str]) -> ProbePair:
    wanted = set(shared)
    rows = [[r for r in s.probes[name] if r.id in wanted] for s in (before, after)]
    was, now = (Table(r) for r in rows)
    sites = [s for s in was.sites if s in now.sites]
    for side, table, other in (("BEFORE", was, now), ("AFTER", now, was)):
        if alone := [s for s in table.sites if s not in other.sites]:
            kinds = sorted(
                {
                    (s.site or "predictions") + (" by head" if s.head is not None else "")
                    for s in alone
                }
            )
            notes.append(
                f"{name}: {len(alone)} sites are in {side} only and not compared "
                f"({', '.join(kinds)})."
            )
    cluster_of = dict(zip(was.ids, was.clusters, strict=True))
    return ProbePair(
        name,
        rows[0][0].metric,
        Table(before.probes[name]),
        shared,
        [cluster_of[i] for i in shared],
        sites,
        _pick(was, shared, sites),
        _pick(now, shared, sites),
        _pooled(name.task, rows, shared, sites),
    )


def _pooled(
    task: str, rows: list[list[ScoreRow]], shared: list[str], sites: list[Site]
) -> Pooled | None:
    every = [r for side in rows for r in side]
    for sums, metric in POOLS.items():
        if not all(r.more.keys() >= set(sums) for r in every):
            continue
        before, after = (
            Ratio(*(_pick(Table(side, name), shared, sites) for name in sums)) for side in rows
        )
        if task in BY_CLASS and all(r.category is not None for r in every):
            category_of = {r.id: str(r.category) for r in rows[0]}
            return Pooled("mIoU", before, after, [category_of[i] for i in shared])
        return Pooled(metric, before, after, None)
    return None


def _pick(table: Table, ids: Sequence[str], sites: Sequence[Site]) -> np.ndarray:
    row_of = {name: i for i, name in enumerate(table.ids)}
    column_of = {site: s for s, site in enumerate(table.sites)}
    return table.score_NS[np.ix_([row_of[i] for i in ids], [column_of[s] for s in sites])]


def _union(a: dict, b: dict) -> list:
    return list(dict.fromkeys((*a, *b)))


def _holds(side: Side) -> str:
    return ", ".join(map(str, (*side.questions, *side.probes))) or "no scored unit"
