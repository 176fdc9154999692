"""`kvfix diagnose`: one model, four diagnoses -> findings -> run -> report."""

from __future__ import annotations

import gc
import time
from typing import Any

from kvfix.data.catalog import CATALOG, WrongSpec, load_units
from kvfix.data.units import MCQ, UnitSet
from kvfix.diagnose.flow.run import diagnose_flow
from kvfix.diagnose.keys.run import diagnose_keys
from kvfix.diagnose.prefix.run import diagnose_prefix
from kvfix.diagnose.surfacing.run import MOST_QUESTIONS, diagnose_surfacing
from kvfix.eval.mcq.run import readable
from kvfix.mlm.load import load_reference_encoder
from kvfix.ranks import agreed, everyone, joined
from kvfix.report.html import write_report
from kvfix.runs.folder import Outcome, claimed
from kvfix.runs.recorder import once
from kvfix.session import (
    PARTS,
    Options,
    Part,
    Watch,
    begin,
    peak_memory_mib,
)
from kvfix.threads import threads_as_before

ASKING = {"keys", "surfacing"}  # these put questions to the model


def diagnose(options: Options, *, command: str, watch: Watch) -> Outcome:
    """Run the asked diagnoses; a second call with the same `out` goes on; raises as `evaluate`."""
    with joined(), claimed(options.out, command=command), threads_as_before():
        return _diagnose(options, command, watch)


def _diagnose(options: Options, command: str, watch: Watch) -> Outcome:
    start = time.monotonic()
    probes, asked = _probe_units(options), _questions(options)
    # A limit counts the questions that have a readout, not the others between them.
    read = [readable(u, options.limit or MOST_QUESTIONS) for u in asked]
    unit_sets = [*probes, *read]
    reference = _reference_sha256(options)
    with watch.phase(f"loading {options.name}"):
        mlm = options.load()
    folder = begin(
        options,
        mlm,
        unit_sets,
        kind="diagnose",
        command=command,
        moves={"only": sorted(options.only), "reference_encoder": reference},
        record={"reference_encoder": options.reference_encoder},
    )
    how: dict[str, Any] = {"seed": options.seed, "watch": watch}
    some = {**how, "limit": options.limit}
    flow = diagnose_flow(probes, mlm, options, watch) if "flow" in options.only else None
    parts: list[Part] = []
    if "keys" in options.only:
        parts.append(diagnose_keys(probes, asked, mlm, options.out, options.mcq, **some))
    if "prefix" in options.only:
        parts.append(diagnose_prefix(probes, mlm, options.out, **some))
    if "surfacing" in options.only:
        parts.append(diagnose_surfacing(read, mlm, options.out, options.mcq, **some))
    del mlm
    gc.collect()
    if flow is not None:
        parts.insert(0, flow())
    peak = max(everyone(peak_memory_mib()))

    def finish() -> Outcome:
        assert folder is not None
        record = folder.save(
            seconds=time.monotonic() - start,
            complete=True,
            results=[r for part in parts for r in part.results],
            findings=[f.to_json() for part in parts for f in part.findings],
            left_out=once([entry for part in parts for entry in part.left_out]),
            notes=[note for part in parts for note in part.notes],
            overlays=[o for part in parts for o in part.overlays],
            **{name: entry for part in parts for name, entry in part.entries.items()},
            peak_memory_mib=max(peak, peak_memory_mib()),
        )
        with watch.phase("writing the report"):
            report = write_report(folder.folder)
        return Outcome(record, report, any(part.failed for part in parts))

    return agreed(finish)


def _probe_units(options: Options) -> list[UnitSet]:
    """Units that probes score.

    Raises:
        WrongSpec: an unknown diagnosis, or data that offers nothing to those asked for.
    """
    unknown = [name for name in options.only if name not in PARTS]
    if unknown or not options.only:
        raise WrongSpec(f"only: expected one of {', '.join(PARTS)}, found {unknown or 'none'}")
    every = load_units(
        options.data,
        tasks=options.tasks or None,
        limit=options.limit,
        questions=bool(ASKING & set(options.only)),
    )
    return [u for u in every if u.task != MCQ]


def _questions(options: Options) -> list[UnitSet]:
    """Every question of the data, where a diagnosis asks any."""
    wanted = not options.tasks or MCQ in options.tasks
    names = [spec for spec in options.data if MCQ in CATALOG[spec.partition("=")[0]].tasks]
    if not (wanted and names and ASKING & set(options.only)):
        return []
    return load_units(names, tasks=(MCQ,), questions=True)


def _reference_sha256(options: Options) -> str | None:
    """Load the reference encoder once at the start: a wrong name must not cost a whole run."""
    if options.reference_encoder is None:
        return None
    return load_reference_encoder(options.reference_encoder, device=options.one_device).sha256
