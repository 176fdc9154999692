"""What each text before the image changes in the values, paired over units."""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import numpy as np

from kvfix.diagnose.best_layer import best_value_layer
from kvfix.eval.results import Table, site_result
from kvfix.eval.stats.bootstrap import paired_bootstrap
from kvfix.eval.suite import TaskRun
from kvfix.findings import Estimate, Finding, title
from kvfix.runs.rows import Result

# (after, before): what is compared. Only the first two are free of length and position.
CONTRASTS = (("correct", "neutral"), ("correct", "wrong"), ("correct", "none"), ("neutral", "none"))
SAID = {
    "none": "no prefix",
    "correct": "the right name before the image",
    "wrong": "a wrong name",
    "neutral": "a neutral text",
}


class PrefixRuns(NamedTuple):
    """A task scored under every condition, and the exact order of one unit's prompt under each."""

    runs: dict[str, TaskRun]
    orders: dict[str, str]
    tokens: tuple[int, int]  # shortest and longest prefix

    def read(self) -> PrefixRuns:
        """The same with its rows in memory: each contrast goes through those of two conditions."""
        return self._replace(
            runs={name: run._replace(rows=list(run.rows)) for name, run in self.runs.items()}
        )


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
