"""Where visual information is gained and lost: vision -> projector -> each LM layer's values.

The best value layer is chosen on one half of the clusters; every figure that depends on the choice
is taken on the other half. All differences are paired over units and resampled by cluster.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from kvfix.data.units import UnitSet
from kvfix.diagnose.best_layer import Best, best_value_layer
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.results import Table, summarise
from kvfix.eval.source import EncoderSource, MlmSource, Site, Source, clips_notes
from kvfix.eval.stats.bootstrap import clustered_bootstrap, paired_bootstrap
from kvfix.eval.suite import TaskRun, run_suite
from kvfix.findings import Estimate, Finding, title
from kvfix.mlm.load import Mlm, load_reference_encoder
from kvfix.ranks import agreed
from kvfix.report.pictures.gallery import draw_gallery
from kvfix.session import Options, Part, Watch

RANDOM, REFERENCE = "random_weights", "reference"  # controls
RANDOM_KINDS = ("vision", "projector", "value")  # where the random-weights control is read


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


def best_site(curve: Curve, *, seed: int = 0) -> Site | None:
    """The site whose predictions are worth showing: the best value layer."""
    best = best_value_layer(curve.table, seed=seed)
    return None if best is None else Site("value", best.layer)


def diagnose_flow(
    unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch
) -> Callable[[], Part]:
    """Measure the model; what comes back measures the controls, once the model may be let go."""
    source = MlmSource(mlm, heads=options.heads, clips=options.clips)
    runs = _measure(unit_sets, source, options, "reading the model", None, watch)
    part, curves = agreed(lambda: _of_model(unit_sets, runs, source, options, watch))

    def with_controls() -> Part:
        others = _controls(options, unit_sets, curves, watch)
        return agreed(lambda: _of_controls(part, curves, others, options, watch))

    return with_controls


def _of_model(
    unit_sets: Sequence[UnitSet],
    runs: Sequence[TaskRun],
    source: MlmSource,
    options: Options,
    watch: Watch,
) -> tuple[Part, list[Curve]]:
    """What the model alone adds to the record, and its curves."""
    curves = [_curve(run) for run in runs if run.rows]
    sites = {(c.task, c.dataset): best_site(c, seed=options.seed) for c in curves}
    with watch.phase("drawing", len(curves)) as tick:
        drawn = draw_gallery(unit_sets, source, sites, options.out, tick=tick)
    with watch.phase("statistics"):
        results = [row for run in runs for row in summarise(run, seed=options.seed)]
    part = Part(
        results=results,
        left_out=[entry for run in runs for entry in run.left_out],
        overlays=drawn.overlays,
        notes=clips_notes(source.mlm, options.clips)
        + [
            f"Picture of {name}: not drawn, {why}"
            for name, why in drawn.not_drawn.items()
            if name not in {entry["id"] for run in runs for entry in run.left_out}
        ],
        failed=any(run.too_many_left_out for run in runs),
    )
    return part, curves


def _of_controls(
    part: Part,
    curves: Sequence[Curve],
    others: dict[str, list[TaskRun]],
    options: Options,
    watch: Watch,
) -> Part:
    """The same with what the controls add, and the findings."""
    with watch.phase("statistics of the controls"):
        for name, runs in others.items():
            control = RANDOM if name == RANDOM else None
            for run in runs:
                part.left_out += run.left_out
                part.failed |= run.too_many_left_out
                part.results += summarise(run, control=control, seed=options.seed)
        part.findings = _findings(curves, others, options.seed)
    return part


def _measure(
    unit_sets: Sequence[UnitSet],
    source: Source,
    options: Options,
    name: str,
    control: str | None,
    watch: Watch,
) -> list[TaskRun]:
    with watch.phase(name, sum(len(u) for u in unit_sets)) as tick:
        return run_suite(unit_sets, source, options.out, control=control, tick=tick)


def _controls(
    options: Options, unit_sets: Sequence[UnitSet], curves: Sequence[Curve], watch: Watch
) -> dict[str, list[TaskRun]]:
    """The random-weights control and the reference encoder, one model in memory at a time.

    The random weights are read on the units that report on the best value layer: the interval of
    the difference rests on no others.
    """
    out: dict[str, list[TaskRun]] = {}
    if options.control:
        with watch.phase("loading the control"):
            mlm = options.load_random(options.seed)
        source = MlmSource(mlm, kinds=RANDOM_KINDS, position=False, clips=options.clips)
        name = "control: random weights"
        reporting = {i for c in curves for i in _reporting_ids(c, options.seed)}
        some = [
            u.subset([n for n, unit in enumerate(u.ids) if (u.task, u.dataset, unit) in reporting])
            for u in unit_sets
        ]
        out[RANDOM] = _measure([u for u in some if len(u)], source, options, name, RANDOM, watch)
        del source, mlm
        gc.collect()
    if options.reference_encoder is not None:
        encoder = load_reference_encoder(options.reference_encoder, device=options.one_device)
        silent = [u for u in unit_sets if not TASKS[u.task].by_text]
        out[REFERENCE] = _measure(
            silent, EncoderSource(encoder), options, "reference encoder", REFERENCE, watch
        )
    return out


def _reporting_ids(curve: Curve, seed: int) -> list[tuple[str, str, str]]:
    best = best_value_layer(curve.table, seed=seed)
    ids = curve.table.ids if best is None else compress(curve.table.ids, best.report_N)
    return [(curve.task, curve.dataset, unit) for unit in ids]


def _curve(run: TaskRun) -> Curve:
    table = Table(run.rows)
    return Curve(run.units.task, run.units.dataset, table.metric, table)


def _findings(
    curves: Sequence[Curve], others: dict[str, list[TaskRun]], seed: int
) -> list[Finding]:
    findings: list[Finding] = []
    for curve in curves:
        controls = {
            name: Table(run.rows)
            for name, runs in others.items()
            for run in runs
            if run.rows and (run.units.task, run.units.dataset) == (curve.task, curve.dataset)
        }
        full = Curve(curve.task, curve.dataset, curve.metric, curve.table, controls)
        findings += flow_findings(full, seed=seed)
    return findings
