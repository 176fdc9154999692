"""Where visual information is gained and lost: vision -> projector -> each LM layer's values.

The best value layer is chosen on one half of the clusters; every figure that depends on the choice
is taken on the other half. All differences are paired over units and resampled by cluster.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvfix.data.units import UnitSet
from kvfix.diagnose.best_layer import Best, best_value_layer
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.results import Table, summarise
from kvfix.eval.source import EncoderSource, MlmSource, Site, Source
from kvfix.eval.stats.bootstrap import Interval, clustered_bootstrap, paired_bootstrap
from kvfix.eval.suite import TaskRun, run_suite
from kvfix.findings import FEWEST_CLUSTERS, Finding
from kvfix.mlm.load import Mlm, load_reference_encoder
from kvfix.report.pictures.gallery import draw_gallery
from kvfix.session import Options, Part, Watch


@dataclass(frozen=True)
class Curve:
    """What one task of one dataset measured.

    Args:
        task: task name.
        dataset: dataset name.
        metric: of the scores.
        table: scores of the model itself.
        controls: scores of the same units under a control (`random_weights`) or another encoder
            (`reference`).
    """

    task: str
    dataset: str
    metric: str
    table: Table
    controls: dict[str, Table] = field(default_factory=dict)


def flow_findings(curve: Curve, *, seed: int = 0) -> list[Finding]:
    """What one curve says: the peak, and what each stage adds or loses."""
    best = best_value_layer(curve.table, seed=seed)
    if best is None:
        return []
    t = curve.table
    columns = t.columns("value")
    last = columns[-1]
    out = [_peak(curve, best, len(columns), seed)]
    vision, projector = (t.columns(k) for k in ("vision", "projector"))
    everyone = np.ones(len(t.ids), bool)
    if vision and projector:
        out.append(
            _change(
                curve,
                "flow.projector",
                everyone,
                t.score_NS[:, vision[0]],
                t.score_NS[:, projector[0]],
                seed,
                ("The projector loses", "The projector adds"),
                "against the vision tower",
            )
        )
    if projector:
        out.append(
            _change(
                curve,
                "flow.lm_gain",
                best.report_N,
                t.score_NS[:, projector[0]],
                t.score_NS[:, best.column],
                seed,
                ("The LM loses", "The LM adds"),
                f"over the projector by value layer {best.layer}",
            )
        )
    if best.column != last:
        out.append(
            _change(
                curve,
                "flow.late_loss",
                best.report_N,
                t.score_NS[:, best.column],
                t.score_NS[:, last],
                seed,
                ("Later layers lose", "Later layers add"),
                f"from value layer {best.layer} to the last, {len(columns) - 1}",
            )
        )
    for name, other in curve.controls.items():
        finding = _against(curve, best, name, other, seed)
        if finding is not None:
            out.append(finding)
    return out


def _peak(curve: Curve, best: Best, n_layers: int, seed: int) -> Finding:
    t, rows = curve.table, best.report_N
    got = clustered_bootstrap(t.score_NS[rows, best.column], _some(t.clusters, rows), seed=seed)
    how = "chosen on the other half of the units" if best.honest else "too few clusters to split"
    chance = float(np.nanmean(t.chance_NS[rows, best.column]))
    ceiling = float(np.nanmean(t.ceiling_NS[rows, best.column]))
    text = (
        f"{_name(curve)}: image values are best at layer {best.layer} of {n_layers} ({how}): "
        f"{curve.metric} {_figures(got)}; chance {chance:.3f}, ceiling of the grid {ceiling:.3f}."
    )
    return _finding("flow.peak", text, curve, got, layer=best.layer, clear=True)


def _against(curve: Curve, best: Best, name: str, other: Table, seed: int) -> Finding | None:
    """The best value layer against a control (at its own best layer) or a reference encoder."""
    if name == "reference":
        columns, what = other.columns("reference"), "a bare vision encoder"
    else:
        columns, what = other.columns("value"), "the same model with random weights"
    reporting = _some(curve.table.ids, best.report_N)
    if not columns or other.ids not in (curve.table.ids, reporting):
        return None
    scores_NS = other.scores_of(curve.table.ids)
    column = columns[int(np.nanargmax(np.nanmean(other.score_NS[:, columns], axis=0)))]
    return _change(
        curve,
        f"flow.{name}",
        best.report_N,
        scores_NS[:, column],
        curve.table.score_NS[:, best.column],
        seed,
        ("The best value layer falls short by", "The best value layer gains"),
        f"against {what}",
    )


def _change(
    curve: Curve,
    name: str,
    rows_N: np.ndarray,
    before_N: np.ndarray,
    after_N: np.ndarray,
    seed: int,
    verbs: tuple[str, str],
    tail: str,
) -> Finding:
    """After - before over the same units, as a sentence."""
    got = paired_bootstrap(
        before_N[rows_N],
        after_N[rows_N],
        _some(curve.table.clusters, rows_N),
        seed=seed,
    )
    value = float(got.value_S[0])
    low, high = float(got.low_S[0]), float(got.high_S[0])
    enough = int(got.clusters_S[0]) >= FEWEST_CLUSTERS
    clear = enough and (low > 0 or high < 0)
    certain = "" if clear else " (the interval holds 0: no clear difference)"
    if not enough:
        certain = " (too few clusters to tell)"
    size = f"{abs(value):.3f} {curve.metric} {tail}, difference {_figures(got, signed=True)}"
    text = f"{_name(curve)}: {verbs[value >= 0]} {size}{certain}."
    return _finding(name, text, curve, got, clear=clear)


def _finding(name: str, text: str, curve: Curve, got: Interval, **more: Any) -> Finding:
    low, high = float(got.low_S[0]), float(got.high_S[0])
    return {
        "id": name,
        "text": text,
        "task": curve.task,
        "dataset": curve.dataset,
        "value": float(got.value_S[0]),
        "ci": None if np.isnan(low) else [low, high],
        "n": int(got.n_S[0]),
        **more,
    }


def _figures(got: Interval, *, signed: bool = False) -> str:
    value, low, high = float(got.value_S[0]), float(got.low_S[0]), float(got.high_S[0])
    form = "+.3f" if signed else ".3f"
    interval = "no interval" if np.isnan(low) else f"{low:{form}}, {high:{form}}"
    return f"{value:{form}} [{interval}] (n = {int(got.n_S[0])})"


def _name(curve: Curve) -> str:
    title = curve.task.replace("_", " ").capitalize()
    return title if curve.dataset == "scenes" else f"{title} ({curve.dataset})"


def _some(names: list[str], rows_N: np.ndarray) -> list[str]:
    return [name for name, use in zip(names, rows_N, strict=True) if use]


def best_site(curve: Curve, *, seed: int = 0) -> Site | None:
    """The site whose predictions are worth showing: the best value layer."""
    best = best_value_layer(curve.table, seed=seed)
    return None if best is None else Site("value", best.layer)


RANDOM = "random_weights"


REFERENCE = "reference"


RANDOM_KINDS = ("vision", "projector", "value")  # where the random-weights control is read


def diagnose_flow(
    unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch
) -> Callable[[], Part]:
    """Measure the model; what comes back measures the controls, once the model may be let go.

    Args:
        unit_sets: of tasks that probes score.
        mlm: the model.
        options: of the command.
        watch: told how far it is.
    """
    source = MlmSource(mlm, heads=options.heads)
    runs = _measure(unit_sets, source, options, "reading the model", None, watch)
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
        notes=[
            f"Picture of {name}: not drawn, {why}"
            for name, why in drawn.not_drawn.items()
            if name not in {entry["id"] for run in runs for entry in run.left_out}
        ],
        failed=any(run.too_many_left_out for run in runs),
    )

    def with_controls() -> Part:
        others = _controls(options, unit_sets, curves, watch)
        with watch.phase("statistics of the controls"):
            for name, other_runs in others.items():
                control = RANDOM if name == RANDOM else None
                for run in other_runs:
                    part.left_out += run.left_out
                    part.failed |= run.too_many_left_out
                    part.results += summarise(run, control=control, seed=options.seed)
            part.findings = _findings(curves, others, options.seed)
        return part

    return with_controls


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
        source = MlmSource(mlm, kinds=RANDOM_KINDS, position=False)
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
    """Task, dataset and id of each unit that may report on the best value layer."""
    best = best_value_layer(curve.table, seed=seed)
    ids = curve.table.ids if best is None else _some(curve.table.ids, best.report_N)
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
