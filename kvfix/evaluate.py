"""`kvfix eval`: the suite on one model: probes over sites, multiple-choice answers, readouts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvfix.data.catalog import load_units
from kvfix.data.left_out import too_many
from kvfix.data.units import UnitSet
from kvfix.eval.mcq.pictures import draw_questions
from kvfix.eval.mcq.run import (
    answer_results,
    readout_path,
    run_answers,
    run_readouts,
    without_readout,
)
from kvfix.eval.pooled import pooled_results
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.results import summarise
from kvfix.eval.source import MlmSource, clips_notes
from kvfix.eval.suite import TaskRun, run_suite
from kvfix.mlm.capture import SITES
from kvfix.mlm.load import Mlm
from kvfix.ranks import agreed, everyone, joined
from kvfix.report.html import write_report
from kvfix.runs.folder import Outcome, claimed
from kvfix.runs.recorder import left_out_of, once
from kvfix.session import RunOptions, Watch, begin, peak_memory_mib
from kvfix.threads import threads_as_before


@dataclass(frozen=True)
class Options(RunOptions):
    """What the command line of `kvfix eval` can say."""

    sites: tuple[str, ...] = SITES  # where features are read


def evaluate(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Run the suite; a second call with the same `out` goes on where the first stopped.

    What does not fit, options, data, model or folder, is a ValueError; InUse: see `locked`.
    """
    with joined(), claimed(options.out, command=command), threads_as_before():
        return _evaluate(options, command, watch)


def _evaluate(options: Options, command: str, watch: Watch) -> Outcome:
    start = time.monotonic()
    unit_sets = load_units(
        options.data, tasks=options.tasks or None, limit=options.limit, questions=True
    )
    with watch.phase(f"loading {options.name}"):
        mlm = options.load()
    mcq = {"mcq": asdict(options.mcq)}
    sites = {"sites": sorted(options.sites)}
    folder = begin(options, mlm, unit_sets, kind="eval", command=command, moves=sites, record=mcq)
    probes = [u for u in unit_sets if u.task in TASKS]
    asked = [u for u in unit_sets if u.task not in TASKS]
    runs = _probe(probes, mlm, options, watch)
    answers = _answer(asked, mlm, options, watch)
    readouts = _read_out(asked, mlm, options, watch)
    for units in asked:
        draw_questions(units, options.out)
    peak = max(everyone(peak_memory_mib()))

    def finish() -> Outcome:
        assert folder is not None
        unread = [e for u in asked for e in left_out_of(u, readout_path(options.out, u))]
        with watch.phase("statistics"):
            results = _results(runs, answers, readouts, options.seed)
        record = folder.save(
            seconds=time.monotonic() - start,
            complete=True,
            results=results,
            findings=[],
            notes=clips_notes(mlm, options.clips),
            left_out=once([e for run in (*runs, *answers) for e in run.left_out] + unread),
            without_readout={u.dataset: without_readout(u, options.out) for u in asked},
            peak_memory_mib=max(peak, peak_memory_mib()),
        )
        with watch.phase("writing the report"):
            report = write_report(folder.folder)
        failed = any(run.too_many_left_out for run in (*runs, *answers))
        failed |= any(
            too_many(len(left_out_of(u, readout_path(options.out, u))), len(u)) for u in asked
        )
        return Outcome(record, report, failed)

    return agreed(finish)


def _probe(unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch) -> list[TaskRun]:
    if not unit_sets:
        return []
    source = MlmSource(mlm, kinds=options.sites, heads=options.heads, clips=options.clips)
    with watch.phase("probing", sum(len(u) for u in unit_sets)) as tick:
        return run_suite(unit_sets, source, options.out, tick=tick)


def _answer(
    unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch
) -> list[TaskRun]:
    if not unit_sets:
        return []
    with watch.phase("answering", sum(len(u) for u in unit_sets)) as tick:
        return [run_answers(u, mlm, options.mcq, options.out, tick=tick) for u in unit_sets]


def _read_out(
    unit_sets: Sequence[UnitSet], mlm: Mlm, options: Options, watch: Watch
) -> list[TaskRun]:
    if not unit_sets:
        return []
    # Where a patch is says nothing about which option is right: no position control here.
    source = MlmSource(mlm, kinds=options.sites, heads=options.heads, position=False)
    with watch.phase("reading out", sum(len(u) for u in unit_sets)) as tick:
        return [r for u in unit_sets for r in run_readouts(u, source, options.out, tick=tick)]


def _results(
    runs: Sequence[TaskRun], answers: Sequence[TaskRun], readouts: Sequence[TaskRun], seed: int
) -> list[dict[str, Any]]:
    results = [
        r for run in runs for r in (*summarise(run, seed=seed), *pooled_results(run, seed=seed))
    ]
    results += [r for run in answers for r in answer_results(run, seed=seed)]
    return results + [r for run in readouts for r in summarise(run, seed=seed)]
