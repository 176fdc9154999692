"""`kvfix diagnose --only flow`: probes at every stage, and the controls beside them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvfix.commands.session import Part, Watch
from kvfix.data.units import UnitSet
from kvfix.diagnose.flow import Curve, Finding, best_site, flow_findings
from kvfix.eval.probes import TASKS
from kvfix.eval.results import Table, summarise
from kvfix.eval.source import EncoderSource, MlmSource, Source
from kvfix.eval.suite import TaskRun, run_suite
from kvfix.models import Mlm, load_reference_encoder
from kvfix.report.gallery import draw_gallery

if TYPE_CHECKING:
    from kvfix.commands.diagnose import Options

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
    part = Part(
        results=[row for run in runs for row in summarise(run, seed=options.seed)],
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
        others = _controls(options, unit_sets, watch)
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
    options: Options, unit_sets: Sequence[UnitSet], watch: Watch
) -> dict[str, list[TaskRun]]:
    """The random-weights control and the reference encoder, one model in memory at a time."""
    out: dict[str, list[TaskRun]] = {}
    if options.control:
        mlm = options.load_random(options.seed)
        source = MlmSource(mlm, kinds=RANDOM_KINDS, position=False)
        name = "control: random weights"
        out[RANDOM] = _measure(unit_sets, source, options, name, RANDOM, watch)
        del source, mlm
        gc.collect()
    if options.reference_encoder is not None:
        encoder = load_reference_encoder(options.reference_encoder, device=options.one_device)
        silent = [u for u in unit_sets if not TASKS[u.task].by_text]
        out[REFERENCE] = _measure(
            silent, EncoderSource(encoder), options, "reference encoder", REFERENCE, watch
        )
    return out


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
