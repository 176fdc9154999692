"""`kvfix compare`: two runs of the same data -> paired differences -> compare.json and a report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kvfix
from kvfix.compare.align import Pairing, Side, differences, fingerprint_of, pair, read_side
from kvfix.compare.answers import answer_changes, answer_findings
from kvfix.compare.probes import probe_changes
from kvfix.data.left_out import too_many
from kvfix.report.compare import page_of, write_pages
from kvfix.runs.fingerprint import mixed, not_recorded, versions
from kvfix.runs.folder import Outcome
from kvfix.runs.lock import locked

# What an intervention or another checkpoint changes; every other difference is worth a word.
EXPECTED = ("weights", "adapter", "predictions")


@dataclass(frozen=True)
class Options:
    """What the command line of `kvfix compare` can say."""

    before: Path  # run folder, or a scored folder of `kvfix score --out`
    after: Path
    out: Path = Path("runs/compare")
    resamples: int = 10_000
    seed: int = 0  # of the bootstrap


def compare(options: Options, *, command: str) -> Outcome:
    """Compare two finished runs and write compare.json, compare.html and compare.md.

    Runs that may not be compared are a ValueError that says what differs.
    """
    with locked(options.out, command=command):
        return _compare(options, command)


def _compare(options: Options, command: str) -> Outcome:
    start, started = time.monotonic(), datetime.now(UTC).isoformat()
    before, after = read_side(options.before), read_side(options.after)
    pairing = pair(before, after)
    how = {"resamples": options.resamples, "seed": options.seed}
    probes = probe_changes(pairing.probes, choice_seed=_seed(before), **how)
    questions = [answer_changes(q, **how) for q in pairing.questions]
    differs = differences(before.record, after.record)
    record = {
        "kvfix": kvfix.__version__,
        "kind": "compare",
        "command": command,
        "started": started,
        "seconds": round(time.monotonic() - start, 1),
        **how,
        "before": _card(before),
        "after": _card(after),
        "differs": [{**d, "expected": d["key"] in EXPECTED} for d in differs],
        "data": before.record.get("data"),
        "units": pairing.units,
        "findings": [
            finding.to_json()
            for finding in (*(f for q in questions for f in answer_findings(q)), *probes.findings)
        ],
        "questions": questions,
        "probes": probes.headlines,
        "results": probes.results,
        "notes": [
            *_notes(questions, differs),
            *_record_notes("BEFORE", before, after),
            *_record_notes("AFTER", after, before),
            *probes.notes,
            *pairing.notes,
        ],
        "versions": versions(),
    }
    report = write_pages(options.out, "compare", record, page_of(record))
    return Outcome(record, report, _too_many_unmatched(pairing))


def _too_many_unmatched(pairing: Pairing) -> bool:
    for u in pairing.units:
        alone = len(u["only_before"]) + len(u["only_after"])
        if u["shared"] and too_many(alone, alone + u["shared"]):
            return True
    return False


def _seed(side: Side) -> int:
    seed = side.record.get("seed", 0)
    return seed if isinstance(seed, int) and seed >= 0 else 0


def _card(side: Side) -> dict[str, Any]:
    model = side.record.get("model")
    model = model if isinstance(model, dict) else {}
    predictions = side.record.get("predictions")
    name = model.get("id")
    if name is None and isinstance(predictions, dict):
        name = "/".join(Path(str(predictions.get("path"))).parts[-2:])
    adapter = model.get("adapter")
    return {
        "folder": str(side.folder),
        "name": str(name or side.folder) + (f" + {adapter}" if adapter else ""),
        "kind": side.record.get("kind"),
        "command": side.record.get("command"),
        "model": model or None,
        "predictions": predictions,
    }


def _record_notes(name: str, side: Side, other: Side) -> list[str]:
    """What one side's record leaves open."""
    notes = []
    mine, others = fingerprint_of(side.record), fingerprint_of(other.record)
    if unknown := not_recorded(mine, others):
        notes.append(
            f"{name} was written by an older kvfix, which did not record {', '.join(unknown)}; "
            "whether the runs differ there is unknown."
        )
    starts = side.record.get("starts")
    if scored := mixed(starts if isinstance(starts, list) else []):
        notes.append(
            f"{name} was interrupted, and its units were scored with {'; '.join(scored)}, which "
            "may move scores by itself."
        )
    return notes


def _notes(questions: list[dict[str, Any]], differs: list[dict[str, Any]]) -> list[str]:
    notes = []
    if not any(d["key"] in EXPECTED for d in differs):
        notes.append("Both runs have the same weights, adapter or predictions.")
    for d in differs:
        if d["key"] not in EXPECTED:
            then, now = (json.dumps(d[k], ensure_ascii=False) for k in ("before", "after"))
            notes.append(
                f"The runs differ in {d['key']} ({then} before, {now} after), which may move "
                "scores by itself."
            )
    for q in questions:
        if q["clusters"] < q["n"]:
            notes.append(
                f"{q['dataset']}: {q['n']} questions in {q['clusters']} clusters. The intervals "
                "resample clusters; McNemar's test and the minimum detectable effect take "
                "questions as independent, so trust the intervals."
            )
        if (missing := q["format"]["missing"])["before"] or missing["after"]:
            notes.append(
                f"{q['dataset']}: {missing['before']} questions had no prediction before, "
                f"{missing['after']} after; they count as wrong and unparsed."
            )
    return notes
