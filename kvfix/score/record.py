"""What every benchmark of `kvfix score` shares: the loop over units, the record, the scored folder.

A benchmark turns each unit's truth and prediction into rows as a probe writes them, but of no site,
and the rows into results by `kvfix.eval.pooled`. From these come the record that `--json` prints
and the folder that `--out` names, which `kvfix compare` takes like any run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from kvfix.data.left_out import too_many
from kvfix.data.units import Truths, UnitSet
from kvfix.eval.pooled import Columns
from kvfix.eval.results import site_result
from kvfix.eval.site import Site
from kvfix.eval.stats.bootstrap import Interval
from kvfix.runs.atomic import write_text
from kvfix.runs.folder import RunFolder, claimed
from kvfix.runs.recorder import Entry, Listing
from kvfix.runs.rows import ProbeRow, Result, Row, to_json

if TYPE_CHECKING:  # it loads models
    from kvfix.session import Watch

T = TypeVar("T")
SCORE_PROTOCOL = 1  # raised whenever a change here moves a score


class Predictions(Protocol):
    """What a benchmark's prediction reader returns.

    Of the `ids` that there were to predict some are `missing`; `unknown` are predictions of
    anything else. `card` says where they lie, how many there are, and their digest.
    """

    @property
    def ids(self) -> Sized: ...

    @property
    def missing(self) -> list[str]: ...

    @property
    def unknown(self) -> Sequence[str]: ...

    def card(self) -> dict[str, Any]: ...


P = TypeVar("P", bound=Predictions)


@dataclass(frozen=True)
class ScoreOptions:
    """What a command line of `kvfix score` can say; `rules` are those of one benchmark."""

    predictions: Path
    truth: Path
    out: Path | None = None  # scored folder to write
    seed: int = 0  # of the bootstrap
    rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring(Generic[T, P]):
    """A scoring under way: what is compared with what, and the rows so far."""

    truths: Truths[T]
    predictions: P
    rules: Mapping[str, Any]
    seed: int
    rows: list[Any] = field(default_factory=list)

    @property
    def units(self) -> UnitSet:
        """What there was to predict."""
        return self.truths.units

    def row(self, name: str, cluster: str, metric: str, score: float, **more: Any) -> ProbeRow:
        """A unit's line in `samples/`; `more` are further numbers, such as pixel counts."""
        units, category = self.units, more.pop("category", None)
        place: dict[str, Any] = Site(None)._asdict() | {
            "category": category,
            "more": more,
            "rows": 1,
        }
        return ProbeRow(
            name, cluster, units.task, units.dataset, metric=metric, score=score, **place
        )

    def columns(self, **fields: Any) -> Columns:
        """The rows in which all these fields have these values."""
        rows = [r for r in self.rows if all(r.number(k) == v for k, v in fields.items())]
        return Columns(rows, self.seed)

    def result(self, metric: str, found: Interval, *, part: str | None = None) -> Result:
        """A flat result; `part` is what it is of (a fold, a category), None for all units."""
        return site_result(self.units, Site(None), metric, found, 0) | {"part": part}


def _nothing(scoring: Scoring, results: Sequence[Result] = ()) -> Any:
    return {}


@dataclass(frozen=True)
class Benchmark(Generic[T, P]):
    """How a benchmark is scored."""

    title: str  # of its table
    # Its reader: the folder or file and the rules -> units and their truths.
    truths: Callable[[Path, Mapping[str, Any]], Truths[T]]
    # Its prediction reader: the folder or file and the truths -> predictions.
    predictions: Callable[[Path, Truths[T]], P]
    # A unit's id and truth -> its rows; those that are written carry `metric`.
    rows: Callable[[Scoring[T, P], str, T], Iterable[Row]]
    # The rows -> its figures, the headline first.
    results: Callable[[Scoring[T, P]], Iterable[Result]]
    # The rows and the results -> further entries of the record.
    details: Callable[[Scoring[T, P], list[Result]], dict[str, Any]] = _nothing
    # What else the reader must know, a sentence each.
    notes: Callable[[Scoring[T, P]], Iterable[str]] = _nothing
    metric: str | None = None  # of the rows that are written; the others only serve the figures
    recorded: tuple[str, ...] = ()  # names of rules that decide a score and are recorded
    protocol: int | str = SCORE_PROTOCOL  # version of the rules, or their name
    # Entry of the record -> the sentence in front of the ids in it.
    oddities: Mapping[str, str] = field(
        default_factory=lambda: {
            "missing": "no prediction, counted as empty",
            "unknown": "predictions of no unit of this data, left out",
        }
    )
    # The error where more than 5 % of the predictions are missing.
    lacking: str = (
        "expected at least 95 % of {n} predictions, found {found}; the others count as empty ones"
    )


@dataclass(frozen=True)
class Scored:
    """The record of a scoring, and why it counts as failed although all of it was scored."""

    record: dict[str, Any]
    problem: str | None = None


def score(benchmark: Benchmark, options: ScoreOptions, *, command: str, watch: Watch) -> Scored:
    """Score predictions by a row of `BENCHMARKS`; a unit without one counts as an empty one.

    Predictions of another form or of other units are a ValueError.
    """
    start = time.monotonic()
    truths = benchmark.truths(options.truth, options.rules)
    predictions = benchmark.predictions(options.predictions, truths)
    scoring = Scoring(truths, predictions, options.rules, options.seed)
    left_out = _each_unit(benchmark, scoring, watch)
    written = [r for r in scoring.rows if getattr(r, "metric", None) == benchmark.metric]
    results = list(benchmark.results(scoring))
    rules = {name: options.rules[name] for name in benchmark.recorded}
    rules["protocol"] = benchmark.protocol
    units, headline = scoring.units, results[0]
    place = {"task": units.task, "dataset": units.dataset, "split": units.split}
    record = {
        "benchmark": units.dataset,
        **rules,
        "seed": options.seed,
        **{key: headline[key] for key in ("metric", "value", "ci")},
        "n": len(written),
        "figures": {
            r["metric"]: r["value"] for r in results if r.get("part", r.get("subtask")) is None
        },
        "missing": predictions.missing,
        "unknown": list(predictions.unknown),
        "left_out": left_out,
        "notes": list(benchmark.notes(scoring)),
        **benchmark.details(scoring, results),
        "predictions": predictions.card(),
        "data": [place | {"n": len(units), "sha256": units.sha256}],
        "results": results,
    }
    if options.out is not None:
        with claimed(options.out, command=command):
            _write(options.out, record, written, rules, command, start)
    return Scored(record, _problem(benchmark, scoring, left_out))


def unread(index: int) -> NoReturn:
    """The `load` of a unit set whose photos are not looked at."""
    raise AssertionError("predictions are scored without photos")


def _each_unit(benchmark: Benchmark, scoring: Scoring, watch: Watch) -> list[Entry]:
    """Add the rows of every unit whose truth can be read; why not, for the others."""
    units = scoring.units
    listing = Listing(len(units))
    with watch.phase("scoring", len(units)) as tick:
        for i, name in enumerate(units.ids):
            truth = listing.unit(units, name, partial(scoring.truths.load, i))
            if truth is not None:
                scoring.rows.extend(benchmark.rows(scoring, name, truth))
            tick(units.task)
    if not scoring.rows:
        why = listing.left_out[0]["why"]
        raise ValueError(f"expected a truth that can be read, found none: {why}")
    return listing.left_out


def _write(
    out: Path,
    record: dict[str, Any],
    rows: Iterable[Row],
    rules: dict[str, Any],
    command: str,
    start: float,
) -> None:
    """`run.json` and `samples/<task>.jsonl`; a folder that holds another scoring is refused."""
    [data] = record["data"]
    folder = RunFolder(
        out,
        kind="score",
        command=command,
        fingerprint={
            "benchmark": record["benchmark"],
            **rules,
            "seed": record["seed"],
            "predictions": record["predictions"]["sha256"],
            "data": {f"{data['dataset']}/{data['task']}/{data['split']}": data["sha256"]},
        },
    )
    path = out / "samples" / f"{data['task']}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(to_json(row), allow_nan=False) + "\n" for row in rows))
    folder.save(seconds=time.monotonic() - start, complete=True, **record)


def _problem(benchmark: Benchmark, scoring: Scoring, left_out: list[Entry]) -> str | None:
    expected, missing = len(scoring.predictions.ids), len(scoring.predictions.missing)
    if too_many(missing, expected):
        return benchmark.lacking.format(n=expected, found=expected - missing)
    n, broken = len(scoring.units), len(left_out)
    if too_many(broken, n):
        return (
            f"expected a truth that can be read for at least 95 % of the units, found {n - broken} "
            f"of {n}; the others are left out"
        )
    return None
