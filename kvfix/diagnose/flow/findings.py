"""What the curve of a task says: the best value layer, and what each stage adds or loses.

All differences are paired over units and resampled by cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from kvfix.diagnose.best_layer import Best, best_value_layer
from kvfix.eval.results import Table
from kvfix.eval.stats.bootstrap import clustered_bootstrap, paired_bootstrap
from kvfix.findings import Estimate, Finding, title

RANDOM, REFERENCE = "random_weights", "reference"  # controls


@dataclass(frozen=True)
class Curve:
    """What one task of one dataset measured."""

    task: str  # task name
    dataset: str  # dataset name
    metric: str  # of the scores
    table: Table  # scores of the model itself
    # Scores of the same units under a control (`random_weights`) or another encoder (`reference`).
    controls: dict[str, Table] = field(default_factory=dict)


def flow_findings(curve: Curve, *, seed: int = 0) -> list[Finding]:
    """What one curve says: the peak, and what each stage adds or loses."""
    best = best_value_layer(curve.table, seed=seed)
    if best is None:
        return []
    change = partial(_change, curve, seed=seed)
    ids, score_NS, columns = curve.table.ids, curve.table.score_NS, curve.table.columns("value")
    at_best, last = score_NS[:, best.column], score_NS[:, columns[-1]]
    vision, projector = (
        next((score_NS[:, c] for c in curve.table.columns(kind)), None)
        for kind in ("vision", "projector")
    )
    out = [_peak(curve, best, len(columns), seed)]
    if vision is not None and projector is not None:
        verbs = ("The projector loses", "The projector adds")
        tail = "against the vision tower"
        everyone = np.ones(len(ids), bool)
        out.append(change("flow.projector", everyone, vision, projector, verbs, tail))
    if projector is not None:
        tail = f"over the projector by value layer {best.layer}"
        verbs = ("The LM loses", "The LM adds")
        out.append(change("flow.lm_gain", best.report_N, projector, at_best, verbs, tail))
    if best.column != columns[-1]:
        tail = f"from value layer {best.layer} to the last, {len(columns) - 1}"
        verbs = ("Later layers lose", "Later layers add")
        out.append(change("flow.late_loss", best.report_N, at_best, last, verbs, tail))
    verbs = ("The best value layer falls short by", "The best value layer gains")
    for name, other in curve.controls.items():
        kind, what = ("reference", "a bare vision encoder")
        if name != REFERENCE:
            kind, what = ("value", "the same model with random weights")
        at = other.columns(kind)
        if at and other.ids in (ids, list(compress(ids, best.report_N))):
            top = at[int(np.nanargmax(np.nanmean(other.score_NS[:, at], axis=0)))]
            control, tail = other.scores_of(ids)[:, top], f"against {what}"
            out.append(change(f"flow.{name}", best.report_N, control, at_best, verbs, tail))
    return out


def _peak(curve: Curve, best: Best, n_layers: int, seed: int) -> Finding:
    t, rows = curve.table, best.report_N
    clusters = list(compress(t.clusters, rows))
    got = Estimate.of(clustered_bootstrap(t.score_NS[rows, best.column], clusters, seed=seed))
    chosen = "chosen on the other half of the units" if best.honest else "too few clusters to split"
    chance, ceiling = (
        float(np.nanmean(bound[rows, best.column])) for bound in (t.chance_NS, t.ceiling_NS)
    )
    words = (
        f"image values are best at layer {best.layer} of {n_layers} ({chosen}): "
        f"{curve.metric} {got.said()}; chance {chance:.3f}, ceiling of the grid {ceiling:.3f}."
    )
    more = {"layer": best.layer}
    return _finding(curve, "flow.peak", words, got, clear=True, more=more)


def _change(
    curve: Curve,
    name: str,
    rows_N: np.ndarray,
    before_N: np.ndarray,
    after_N: np.ndarray,
    verbs: tuple[str, str],
    tail: str,
    *,
    seed: int,
) -> Finding:
    """After - before over the same units, as a sentence; `verbs` are for a loss and a gain."""
    clusters = list(compress(curve.table.clusters, rows_N))
    got = Estimate.of(paired_bootstrap(before_N[rows_N], after_N[rows_N], clusters, seed=seed))
    value = math.nan if got.value is None else got.value
    words = (
        f"{verbs[value >= 0]} {abs(value):.3f} {curve.metric} {tail}, difference "
        f"{got.said(signed=True)}{got.doubt()}."
    )
    return _finding(curve, name, words, got, clear=got.clear)


def _finding(curve: Curve, name: str, words: str, got: Estimate, **more: Any) -> Finding:
    subject = title(curve.task, curve.dataset)
    return Finding(name, words, got, curve.task, curve.dataset, subject, **more)
