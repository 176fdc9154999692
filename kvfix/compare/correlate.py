"""`kvfix compare --correlate`: does a model that gains more on its projector also answer better?

The paper (arXiv 2510.04819) finds that how much the language model adds to what the projector
passes in goes with the model's overall perception. Here a run is one point: a probe's score of the
image values minus its score of the projector, against the accuracy of the answers, both out of
run.json. Spearman's rho has an interval over the N runs: it says what other models of the same kind
would show, not what other units would.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kvfix
from kvfix.compare.align import RULES, differences
from kvfix.compare.rank_correlation import FEWEST, rank_correlation
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.stats.paired import holm
from kvfix.findings import PLACES as FINDING_PLACES
from kvfix.findings import Estimate, Finding
from kvfix.report.compare import write_pages
from kvfix.report.correlate import page_of
from kvfix.runs.fingerprint import versions
from kvfix.runs.folder import Outcome
from kvfix.runs.lock import locked
from kvfix.runs.resume import read_finished
from kvfix.runs.rows import READOUT, full_name

PLACES = ("best", "last")
ALL = "all probes"  # the mean gain over the probes that every run has
SAME_MODEL = ("weights", "adapter", "dtype", "quant")  # two runs equal in these are one point
LEVEL = 0.05

Record = dict[str, Any]
Name = tuple[str, str, str]  # task, dataset, metric


@dataclass(frozen=True)
class CorrelateOptions:
    """What the command line of `kvfix compare --correlate` can say."""

    runs: tuple[Path, ...]
    out: Path = Path("runs/correlate")


class Gain(NamedTuple):
    """What a run's values add to its projector at one probe; one entry for each value layer."""

    by_layer: tuple[float, ...]

    @property
    def best_layer(self) -> int:
        """The layer of the highest score: the same optimism in every run, ranks bear it."""
        return int(np.argmax(self.by_layer))

    def at(self, place: str) -> float:
        """At the `best` or the `last` layer."""
        return self.by_layer[self.best_layer if place == "best" else -1]


def correlate(options: CorrelateOptions, *, command: str) -> Outcome:
    """Correlate over runs and write correlate.json, correlate.html and correlate.md.

    Runs that measured other things, are of one model, or lack one side are a ValueError.
    """
    with locked(options.out, command=command):
        return _correlate(options, command)


def _correlate(options: CorrelateOptions, command: str) -> Outcome:
    start, started = time.monotonic(), datetime.now(UTC).isoformat()
    records = [read_finished(folder) for folder in options.runs]
    _comparable(options.runs, records)
    gains = [_gains(record) for record in records]
    answers = [_answers(record) for record in records]
    probes = _held_by_all(gains, options.runs, "probes at the projector and at value layers")
    questions = _held_by_all(answers, options.runs, "answers to questions")
    rows = _correlations(gains, probes, answers, questions)
    record = {
        "kvfix": kvfix.__version__,
        "kind": "correlate",
        "command": command,
        "started": started,
        "seconds": round(time.monotonic() - start, 1),
        "runs": [
            _card(*point) for point in zip(options.runs, records, gains, answers, strict=True)
        ],
        "correlations": rows,
        "findings": [_finding(row).to_json() for row in rows if row["place"] in PLACES],
        "notes": _notes(records, gains, probes, answers, questions),
        "versions": versions(),
    }
    report = write_pages(options.out, "correlate", record, page_of(record))
    return Outcome(record, report, failed=False)


def _comparable(folders: Sequence[Path], records: Sequence[Record]) -> None:
    """Refuse runs of other units or under other rules, and a model that comes twice."""
    for (a, was), (b, now) in combinations(zip(folders, records, strict=True), 2):
        for item in differences(was, now):
            if item["key"] in RULES and None not in (item["before"], item["after"]):
                raise ValueError(
                    f"{item['key']}: expected one rule of scoring in all runs, found "
                    f"{item['before']!r} in {a} and {item['after']!r} in {b}"
                )
        mine, other = _data(was), _data(now)
        for name in mine.keys() & other.keys():
            if mine[name] != other[name]:
                raise ValueError(
                    f"{name}: expected the same units in all runs, found {mine[name]} in {a} and "
                    f"{other[name]} in {b}; run both on the same data with the same --limit"
                )
        models = [[(r.get("fingerprint") or {}).get(k) for k in SAME_MODEL] for r in (was, now)]
        if models[0][0] is not None and models[0] == models[1]:
            raise ValueError(
                f"expected another model in every run, found the same weights and adapter in {a} "
                f"and {b}; one model is one point"
            )


def _data(record: Record) -> dict[str, str]:
    return {
        f"{d.get('dataset')}/{d.get('task')}": f"n = {d.get('n')}, split {d.get('split')}, SHA-256 "
        f"{d.get('sha256')}"
        for d in record.get("data") or []
    }


def _gains(record: Record) -> dict[Name, Gain]:
    """Each value layer's score minus the projector's, by task, dataset and metric."""
    rows = [
        r
        for r in record.get("results") or []
        if r.get("control") is None and r.get("head") is None and r.get("value") is not None
    ]
    found: dict[Name, Gain] = {}
    for row in rows:
        name = (_task(row), row["dataset"], row["metric"])
        probe = TASKS.get(row["task"])
        is_own = row["metric"] == (probe.metric if probe else "accuracy")
        if row.get("site") != "projector" or not is_own:
            continue
        layers = {
            r["layer"]: r["value"] - row["value"]
            for r in rows
            if r.get("site") == "value" and (_task(r), r["dataset"], r["metric"]) == name
        }
        if layers and sorted(layers) == list(range(len(layers))):
            found[name] = Gain(tuple(layers[i] for i in range(len(layers))))
    return found


def _task(row: Record) -> str:
    return full_name(row["task"], row.get("subtask"))


def _answers(record: Record) -> dict[tuple[str, str], float]:
    return {
        (r["dataset"], r["scoring"]): r["value"]
        for r in record.get("results") or []
        if r.get("task") == "mcq" and r.get("metric") == "accuracy_macro"
    }


def _held_by_all(sides: Sequence[dict], folders: Sequence[Path], what: str) -> list:
    """The names that every run holds; a ValueError if there are none."""
    shared = [name for name in sides[0] if all(name in side for side in sides)]
    if not shared:
        empty = [str(f) for f, side in zip(folders, sides, strict=True) if not side]
        raise ValueError(
            f"expected {what} that all runs share, found none"
            + (f" in {', '.join(empty)}" if empty else "")
            + "; `kvfix diagnose` and `kvfix eval` measure both sides"
        )
    return shared


def _correlations(
    gains: Sequence[dict[Name, Gain]],
    probes: Sequence[Name],
    answers: Sequence[dict[tuple[str, str], float]],
    questions: Sequence[tuple[str, str]],
) -> list[Record]:
    """A row for each probe, place and way of answering; Holm's p is over the rows of `PLACES`."""
    rows = []
    for dataset, scoring in questions:
        y = [run[dataset, scoring] for run in answers]
        said: dict[str, str | None] = {"questions": dataset, "scoring": scoring}
        for name in probes:
            mine = [run[name] for run in gains]
            of = said | dict(zip(("task", "dataset", "metric"), name, strict=True))
            for place in PLACES:
                rows.append(_row([g.at(place) for g in mine], y, place=place, layer=None, **of))
            if len({len(g.by_layer) for g in mine}) == 1:
                for layer in range(len(mine[0].by_layer)):
                    x = [g.by_layer[layer] for g in mine]
                    rows.append(_row(x, y, place="layer", layer=layer, **of))
        if len(probes) > 1:
            for place in PLACES:
                x = [float(np.mean([run[name].at(place) for name in probes])) for run in gains]
                of = said | {"task": ALL, "dataset": None, "metric": None}
                rows.append(_row(x, y, place=place, layer=None, **of))
    tested = [r for r in rows if r["place"] in PLACES and r["p"] is not None]
    for row, p in zip(tested, holm([r["p"] for r in tested]), strict=True):
        row["p_holm"] = float(p)
        row["clear"] = bool(p < LEVEL)
    return rows


def _row(x: Sequence[float], y: Sequence[float], **named: Any) -> Record:
    got = rank_correlation(np.array(x), np.array(y))
    has_interval = not np.isnan(got.low)
    return named | {
        "rho": None if np.isnan(got.rho) else got.rho,
        "ci": [got.low, got.high] if has_interval else None,
        "p": got.p if has_interval else None,
        "p_holm": None,
        "n": got.n,
        "clear": False,
        "gains": list(x),
        "accuracies": list(y),
    }


def _finding(row: Record) -> Finding:
    where = FINDING_PLACES[row["place"]].name
    probe = row["task"].replace("_", " ")
    if row["dataset"] not in (None, "scenes"):
        probe += f" ({row['dataset']})"
    said = "written answers" if row["scoring"] == "generation" else "answers by log-probability"
    if row["rho"] is None:
        what = "no order to compare: too few runs, or all alike on one side"
    elif row["ci"] is None:
        what = f"Spearman's rho {row['rho']:+.2f}, too few runs to tell (at least {FEWEST})"
    else:
        certain = "" if row["clear"] else ", not clear"
        low, high = row["ci"]
        what = (
            f"Spearman's rho {row['rho']:+.2f} [{low:+.2f}, {high:+.2f}], p = {row['p']:.3f}, "
            f"{row['p_holm']:.3f} after Holm's correction{certain}"
        )
    words = (
        f"{probe}: gain of the LM over the projector ({where}) and accuracy of {said} "
        f"({row['questions']}): {what} (n = {row['n']} runs)."
    )
    name, rho = (
        f"correlate.{row['place']}.{row['scoring']}",
        Estimate(row["rho"], row["ci"], row["n"]),
    )
    return Finding(name, words, rho, row["task"], row["dataset"], clear=row["clear"])


def _card(
    folder: Path, record: Record, gains: dict[Name, Gain], answers: dict[tuple[str, str], float]
) -> Record:
    model = record.get("model") or {}
    adapter = model.get("adapter")
    return {
        "folder": str(folder),
        "name": str(model.get("id") or folder) + (f" + {adapter}" if adapter else ""),
        "kind": record.get("kind"),
        "command": record.get("command"),
        "gains": [
            {
                **dict(zip(("task", "dataset", "metric"), name, strict=True)),
                **{place: gain.at(place) for place in PLACES},
                "best_layer": gain.best_layer,
                "by_layer": list(gain.by_layer),
            }
            for name, gain in gains.items()
        ],
        "answers": [
            {"dataset": d, "scoring": s, "accuracy_macro": v} for (d, s), v in answers.items()
        ],
    }


def _notes(
    records: Sequence[Record],
    gains: Sequence[dict[Name, Gain]],
    probes: Sequence[Name],
    answers: Sequence[dict],
    questions: Sequence[tuple[str, str]],
) -> list[str]:
    notes = [
        "Runs count as independent points. Checkpoints of one training, or adapters of one base, "
        "are not: their interval is too short."
    ]
    if len(records) < FEWEST:
        notes.append(
            f"{len(records)} runs are too few to tell: from {FEWEST} on there is an interval."
        )
    for side, held, what in ((gains, probes, "probe"), (answers, questions, "questions")):
        lacking = dict.fromkeys(name for run in side for name in run if name not in held)
        notes += [f"{what} {'/'.join(name)}: left out, not every run has it." for name in lacking]
    by_text = sorted(
        {
            r["task"].replace("_", " ")
            for record in records
            for r in record.get("results") or []
            if r.get("site") == "value"
            and r.get("control") is None
            and not r["task"].startswith(READOUT)
            and not any(r["task"] == name[0] for run in gains for name in run)
        }
    )
    if by_text:
        notes.append(
            f"{', '.join(by_text)}: no score at the projector (it holds no text), so no gain."
        )
    return notes
