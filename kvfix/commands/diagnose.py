"""`kvfix diagnose`: units -> one pass of the model -> probes -> findings -> run -> report."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kvfix.data.catalog import load_units
from kvfix.data.units import UnitSet
from kvfix.diagnose.flow import Curve, Finding, best_site, flow_findings
from kvfix.eval.probes import TASKS
from kvfix.eval.results import Table, summarise
from kvfix.eval.source import NEUTRAL, EncoderSource, MlmSource, Source
from kvfix.eval.suite import PROTOCOL, TaskRun, run_suite
from kvfix.models import Mlm, load_mlm, load_reference_encoder
from kvfix.report.gallery import draw_gallery
from kvfix.report.html import write_report
from kvfix.report.run import RunFolder, data_card, model_card
from kvfix.shipped import nano_dir

RANDOM = "random_weights"
REFERENCE = "reference"
RANDOM_KINDS = ("vision", "projector", "value")  # where the random-weights control is read


@dataclass(frozen=True)
class Options:
    """What the command line of `kvfix diagnose` can say."""

    model: str | None = None  # hub id or folder; None: the shipped nano
    adapter: str | None = None  # PEFT folder
    data: tuple[str, ...] = ("scenes",)  # NAME or NAME=DIR
    tasks: tuple[str, ...] = ()  # empty: every task the data offers
    limit: int | None = None  # units a task
    out: Path = Path("runs/diagnose")
    heads: bool = False  # every KV head apart
    reference_encoder: str | None = None
    control: bool = True  # the same architecture with random weights
    dtype: str = "auto"
    device: str | None = None
    quant: str | None = None
    attn: str | None = None
    seed: int = 0


class Watch(Protocol):
    """Who is told how far a run is."""

    def say(self, text: str) -> None:
        """Tell what begins."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Show a phase of `total` units; yields what to call after each unit."""


@dataclass(frozen=True)
class Outcome:
    """The record that was written, and whether more than 5 % of a task's units were left out."""

    record: dict[str, Any]
    report: Path
    failed: bool


def diagnose(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Run the whole diagnosis; a second call with the same `out` goes on where the first stopped.

    Raises:
        ValueError: options, data or model that do not fit, or a folder that holds another run.
        FileNotFoundError: a model or data folder that is not there.
    """
    start = time.monotonic()
    unit_sets = load_units(options.data, tasks=options.tasks or None, limit=options.limit)
    reference = _reference_sha256(options)
    watch.say(f"loading {options.model or 'the shipped nano'}")
    mlm = _load(options)
    folder = RunFolder(
        options.out,
        kind="diagnose",
        command=command,
        fingerprint=_fingerprint(options, mlm, unit_sets, reference),
    )
    folder.save(
        seed=options.seed,
        model=model_card(mlm),
        data=data_card(unit_sets),
        reference_encoder=options.reference_encoder,
        resumed=folder.resumed,
    )
    source = MlmSource(mlm, heads=options.heads)
    runs = _measure(unit_sets, source, options, "reading the model", None, watch)
    curves = [_curve(run) for run in runs if run.rows]
    sites = {(c.task, c.dataset): best_site(c, seed=options.seed) for c in curves}
    with watch.phase("drawing", len(curves)) as tick:
        overlays = draw_gallery(unit_sets, source, sites, folder.folder, tick=tick)
    results = [row for run in runs for row in summarise(run, seed=options.seed)]
    del source, mlm
    gc.collect()
    others = _controls(options, unit_sets, watch)
    for name, other_runs in others.items():
        control = RANDOM if name == RANDOM else None
        results += [
            r for run in other_runs for r in summarise(run, control=control, seed=options.seed)
        ]
    findings = _findings(curves, others, options.seed)
    left_out = [entry for run in runs for entry in run.left_out]
    record = folder.save(
        seconds=time.monotonic() - start,
        complete=True,
        results=results,
        findings=findings,
        left_out=left_out,
        overlays=overlays,
        peak_memory_mib=_peak_memory_mib(),
    )
    report = write_report(folder.folder)
    return Outcome(record, report, any(run.too_many_left_out for run in runs))


def _peak_memory_mib() -> float:
    """Most memory this process ever held, resident and on the accelerator together."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return round(resident + device, 1)


def _load(options: Options, *, random_weights: int | None = None) -> Mlm:
    model = options.model or str(nano_dir())
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if random_weights is not None:
        # A control has neither adapter nor quantised weights: it has the architecture only.
        return load_mlm(
            model,
            dtype=dtype,
            device=_one_device(options),
            attn=options.attn,
            random_weights=random_weights,
        )
    return load_mlm(
        model,
        adapter=options.adapter,
        dtype=dtype,
        device=options.device,
        quant=options.quant,
        attn=options.attn,
    )


def _one_device(options: Options) -> str | None:
    """Controls are not spread over devices."""
    return None if options.device == "auto" else options.device


def _reference_sha256(options: Options) -> str | None:
    """Load the reference encoder once at the start: a wrong name must not cost a whole run."""
    if options.reference_encoder is None:
        return None
    return load_reference_encoder(options.reference_encoder, device=_one_device(options)).sha256


def _fingerprint(
    options: Options, mlm: Mlm, unit_sets: Sequence[UnitSet], reference: str | None
) -> dict[str, Any]:
    """All that moves a score; samples of another fingerprint are never mixed in."""
    card = model_card(mlm)
    return {
        "weights": card["sha256"],
        "adapter": card["adapter_sha256"],
        "dtype": card["dtype"],
        "quant": options.quant,
        "heads": options.heads,
        "prompt": NEUTRAL,
        "protocol": PROTOCOL,
        "reference_encoder": reference,
        "seed": options.seed,
        "data": {f"{u.dataset}/{u.task}/{u.split}": u.sha256 for u in unit_sets},
    }


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
        mlm = _load(options, random_weights=options.seed)
        source = MlmSource(mlm, kinds=RANDOM_KINDS, position=False)
        name = "control: random weights"
        out[RANDOM] = _measure(unit_sets, source, options, name, RANDOM, watch)
        del source, mlm
        gc.collect()
    if options.reference_encoder is not None:
        encoder = load_reference_encoder(options.reference_encoder, device=_one_device(options))
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
