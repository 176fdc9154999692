"""What every `kvfix score` command shares: the loop over truths, the record, the scored folder.

A command turns predictions and truth into a `Scored`: one row a unit and the benchmark's figures.
From it come the record that `--json` prints and the folder that `--out` names, which
`kvfix compare` takes like a run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from kvfix.data.left_out import Attempts, LeftOut, too_many
from kvfix.data.units import Truths, UnitSet
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap, pooled_ratio_bootstrap
from kvfix.runs.atomic import write_text
from kvfix.runs.folder import RunFolder, claimed
from kvfix.runs.samples import Row

T = TypeVar("T")
PROTOCOL = 1  # raised whenever a change here moves a score


class Watch(Protocol):
    """Who is told how far a scoring is."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Show a phase of `total` units; yields what to call after each unit."""


@dataclass(frozen=True)
class Options:
    """What every command line of `kvfix score` can say; rules of one benchmark are its own."""

    predictions: Path
    truth: Path
    out: Path | None = None  # scored folder to write
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True)
class Predictions:
    """What was scored: where it lay, how many units it predicts, a digest of all of it."""

    path: Path
    n: int
    sha256: str


@dataclass(frozen=True)
class Scored:
    """Everything a scoring found.

    Args:
        units: what there was to predict.
        predictions: what was predicted.
        rules: what else decides the score (an official rule that was chosen), by name.
        figures: the headline first.
        rows: one a unit, see `unit_row`.
        missing: ids without prediction; they are scored as an empty one.
        unknown: predictions of no unit, left out.
        left_out: units whose truth cannot be read, as `{"id", "why"}`.
        notes: what else the reader must know, a sentence each.
        details: further figures for `--json`.
        expected: predictions that a complete set has, where that is not one a unit.
    """

    units: UnitSet
    predictions: Predictions
    rules: dict[str, Any]
    figures: list[Figure]
    rows: list[Row]
    missing: list[str]
    unknown: list[str] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    expected: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The record of a scoring, and why it counts as failed although all of it was scored."""

    record: dict[str, Any]
    problem: str | None = None


def each_truth(
    truths: Truths[T], left_out: list[dict[str, str]], watch: Watch
) -> Iterator[tuple[str, T]]:
    """The id and the truth of every unit that can be read; why not, for the others."""
    attempts = Attempts(len(truths.units))
    with watch.phase("scoring", len(truths.units)) as tick:
        for i, name in enumerate(truths.units.ids):
            truth = attempts.do(partial(truths.load, i))
            if isinstance(truth, LeftOut):
                left_out.append({"id": name, "why": truth.why})
            else:
                yield name, truth
            tick(truths.units.task)
    if len(left_out) == len(truths.units):
        raise ValueError(f"expected a truth that can be read, found none: {left_out[0]['why']}")


def unit_row(
    of: tuple[str, str], name: str, cluster: str, metric: str, score: float, **more: Any
) -> Row:
    """A unit's line in `samples/`: a probe's row that was read at no site of a model.

    Args:
        of: task and dataset.
        name: the unit's id.
        cluster: what is resampled together.
        metric: what `score` is.
        score: of the unit.
        more: further numbers, such as intersection and union.
    """
    task, dataset = of
    return {
        "id": name,
        "cluster": cluster,
        "task": task,
        "dataset": dataset,
        "control": None,
        "site": None,
        "layer": None,
        "head": None,
        "metric": metric,
        "score": score,
        **more,
        "rows": 1,
    }


def finish(scored: Scored, options: Options, *, command: str, start: float) -> Outcome:
    """The record of a scoring; written to `options.out` too where that is given.

    Args:
        scored: what was found.
        options: of the command line.
        command: the command line, for the record.
        start: of the scoring, by `time.monotonic`.

    Raises:
        ValueError: `options.out` holds something else.
    """
    record = _record(scored, options.seed)
    if options.out is not None:
        rules = {"protocol": PROTOCOL, **scored.rules}
        write_scored(options.out, record, scored.rows, rules=rules, command=command, start=start)
    return Outcome(record, _problem(scored))


def write_scored(
    out: Path,
    record: dict[str, Any],
    rows: Sequence[Row],
    *,
    rules: dict[str, Any],
    command: str,
    start: float,
) -> None:
    """The scored folder: `run.json` and `samples/<task>.jsonl`, one line a unit.

    Args:
        out: created if absent; scored again if it holds the same.
        record: with `benchmark`, `seed`, `predictions.sha256` and `data`.
        rows: each with `rows`, the number of its unit's lines.
        rules: what decides a score beside predictions and data.
        command: for the record.
        start: by `time.monotonic`.

    Raises:
        ValueError: `out` holds something else, was scored by other rules, or is being written.
    """
    with claimed(out, command=command):
        _write_scored(out, record, rows, rules, command, start)


def _write_scored(
    out: Path,
    record: dict[str, Any],
    rows: Sequence[Row],
    rules: dict[str, Any],
    command: str,
    start: float,
) -> None:
    data = {f"{d['dataset']}/{d['task']}/{d['split']}": d["sha256"] for d in record["data"]}
    folder = RunFolder(
        out,
        kind="score",
        command=command,
        fingerprint={
            "benchmark": record["benchmark"],
            **rules,
            "seed": record["seed"],
            "predictions": record["predictions"]["sha256"],
            "data": data,
        },
    )
    path = out / "samples" / f"{record['data'][0]['task']}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    folder.save(seconds=time.monotonic() - start, complete=True, **record)


def _record(scored: Scored, seed: int) -> dict[str, Any]:
    units, predictions = scored.units, scored.predictions
    place = {"task": units.task, "dataset": units.dataset, "split": units.split}
    headline = scored.figures[0]
    return {
        "benchmark": units.dataset,
        **scored.rules,
        "protocol": PROTOCOL,
        "seed": seed,
        "metric": headline.metric,
        "value": headline.value,
        "ci": headline.ci,
        "n": len(scored.rows),
        "figures": {f.metric: f.value for f in scored.figures if f.part is None},
        **scored.details,
        "missing": scored.missing,
        "unknown": scored.unknown,
        "left_out": scored.left_out,
        "notes": scored.notes,
        "predictions": {
            "path": str(predictions.path),
            "n": predictions.n,
            "sha256": predictions.sha256,
        },
        "data": [place | {"n": len(units), "sha256": units.sha256}],
        "results": [
            place
            | {"site": None, "layer": None, "head": None, "control": None, "part": f.part}
            | {"metric": f.metric, "value": f.value, "ci": f.ci, "n": f.n}
            | {"clusters": f.clusters, "cluster": units.cluster}
            for f in scored.figures
        ],
    }


def _problem(scored: Scored) -> str | None:
    n, missing, broken = len(scored.units), len(scored.missing), len(scored.left_out)
    expected = n if scored.expected is None else scored.expected
    if too_many(missing, expected):
        return (
            f"expected at least 95 % of {expected} predictions, found {expected - missing}; the "
            "others count as empty ones"
        )
    if too_many(broken, n):
        return (
            f"expected a truth that can be read for at least 95 % of the units, found {n - broken} "
            f"of {n}; the others are left out"
        )
    return None


class Figure(NamedTuple):
    """One figure; `part` is what it is of (a fold, a category), None for all units."""

    metric: str
    value: float
    ci: tuple[float, float] | None
    n: int
    clusters: int
    part: str | None = None


def mean_figure(
    metric: str,
    value: float,
    values_N: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    part: str | None = None,
) -> Figure:
    """A mean over units, with the clustered bootstrap's interval.

    Args:
        metric: its name.
        value: the mean, as the metric's pure function has it.
        values_N: what it is the mean of.
        clusters: one label a unit.
        seed: of the bootstrap.
        part: see `Figure`.
    """
    got = clustered_bootstrap(np.asarray(values_N, float), clusters, seed=seed)
    _check(value, float(got.value_S[0]))
    return Figure(metric, value, _ends(got), int(got.n_S[0]), int(got.clusters_S[0]), part)


def ratio_figure(
    metric: str,
    value: float,
    parts_N: Sequence[float] | np.ndarray,
    wholes_N: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    strata: Sequence[Hashable] | None = None,
    n_strata: int | None = None,
    n: int | None = None,
    part: str | None = None,
) -> Figure:
    """A pooled ratio, or the mean of one a stratum, recomputed in every resample.

    Args:
        metric: its name.
        value: the ratio, as the metric's pure function has it.
        parts_N: intersections, or correct keypoints.
        wholes_N: unions, or all keypoints.
        clusters: one label an entry.
        seed: of the bootstrap.
        strata: one label an entry (a class, a side); each ratio is pooled within its stratum.
        n_strata: how many strata the mean is over where that is more than occur: the others are 0.
        n: units, where that is not the number of entries.
        part: see `Figure`.
    """
    wholes = np.asarray(wholes_N, float)
    got = pooled_ratio_bootstrap(
        np.asarray(parts_N, float), wholes, clusters, strata=strata, seed=seed
    )
    share = 1.0
    if strata is not None and n_strata is not None:
        occur = {s for s, whole in zip(strata, wholes, strict=True) if whole > 0}
        share = len(occur) / n_strata
    _check(value, share * float(got.value_S[0]))
    units = int(got.n_S[0]) if n is None else n
    return Figure(metric, value, _ends(got, share), units, int(got.clusters_S[0]), part)


def _check(value: float, resampled: float) -> None:
    """The interval must be of the figure that it stands beside."""
    assert math.isclose(value, resampled, abs_tol=1e-9), (value, resampled)


def _ends(got: Interval, share: float = 1.0) -> tuple[float, float] | None:
    low, high = share * float(got.low_S[0]), share * float(got.high_S[0])
    return None if math.isnan(low) else (low, high)
