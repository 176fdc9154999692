"""`kvfix diagnose --only flow`: where visual information is gained and lost.

Read are the vision tower, the projector and each LM layer's values. The best value layer is chosen
on one half of the clusters; every figure that depends on the choice is taken on the other half.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress

from kvfix.data.units import UnitSet
from kvfix.diagnose.best_layer import best_value_layer
from kvfix.diagnose.flow.findings import RANDOM, REFERENCE, Curve, flow_findings
from kvfix.diagnose.flow.gallery import Gallery, draw_gallery, due_pictures
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.results import Table, summarise
from kvfix.eval.site import Site
from kvfix.eval.source import EncoderSource, MlmSource, Source, clips_notes
from kvfix.eval.suite import TaskRun, run_suite
from kvfix.findings import Finding
from kvfix.mlm.load import Mlm, load_reference_encoder
from kvfix.ranks import agreed
from kvfix.session import Options, Part, Watch

RANDOM_KINDS = ("vision", "projector", "value")  # where the random-weights control is read


def diagnose_flow(
    unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch
) -> Callable[[], Part]:
    """Measure the model; what comes back measures the controls, once the model may be let go."""
    source = MlmSource(mlm, heads=options.heads, clips=options.clips)
    runs = _measure(unit_sets, source, options, "reading the model", None, watch)
    curves = [_curve(run) for run in runs if run.rows]
    sites = agreed(lambda: {(c.task, c.dataset): best_site(c, seed=options.seed) for c in curves})
    due = due_pictures(unit_sets, sites)
    with watch.phase("drawing", len(due)) as tick:
        drawn = draw_gallery(due, source, options.out, tick=tick)
    part = agreed(lambda: _of_model(runs, drawn, mlm, options, watch))

    def with_controls() -> Part:
        others = _controls(options, unit_sets, curves, watch)
        return agreed(lambda: _of_controls(part, curves, others, options, watch))

    return with_controls


def _of_model(
    runs: Sequence[TaskRun], drawn: Gallery, mlm: Mlm, options: Options, watch: Watch
) -> Part:
    """What the model alone adds to the record."""
    with watch.phase("statistics"):
        results = [row for run in runs for row in summarise(run, seed=options.seed)]
    return Part(
        results=results,
        left_out=[entry for run in runs for entry in run.left_out],
        overlays=drawn.overlays,
        notes=clips_notes(mlm, options.clips)
        + [
            f"Picture of {name}: not drawn, {why}"
            for name, why in drawn.not_drawn.items()
            if name not in {entry["id"] for run in runs for entry in run.left_out}
        ],
        failed=any(run.too_many_left_out for run in runs),
    )


def best_site(curve: Curve, *, seed: int = 0) -> Site | None:
    """The site whose predictions are worth showing: the best value layer."""
    best = best_value_layer(curve.table, seed=seed)
    return None if best is None else Site("value", best.layer)


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
        findings += flow_findings(replace(curve, controls=controls), seed=seed)
    return findings
