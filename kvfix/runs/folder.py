"""The run folder: who holds it, and `run.json` at the start and the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import kvfix
from kvfix.data.units import UnitSet
from kvfix.ranks import is_first
from kvfix.runs.atomic import write_text
from kvfix.runs.fingerprint import mixed, start_card, versions
from kvfix.runs.lock import locked
from kvfix.runs.resume import earlier_run, earlier_starts, refuse_foreign
from kvfix.runs.rows import SCHEMA
from kvfix.runs.shares import sharing

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The record that was written, and whether too much of its data could not be used."""

    record: dict[str, Any]
    report: Path
    failed: bool


def model_card(mlm: Any) -> dict[str, Any]:
    """What identifies a loaded model."""
    return {
        "id": mlm.id,
        "family": mlm.family.model_type,
        "revision": mlm.revision,
        "sha256": mlm.sha256,
        "adapter": None if mlm.adapter is None else str(mlm.adapter.folder),
        "adapter_sha256": None if mlm.adapter is None else mlm.adapter.sha256,
        "processor": mlm.processor_id,
        "processor_sha256": mlm.processor_sha256,
        "dtype": str(mlm.dtype).removeprefix("torch."),
        "warnings": list(mlm.warnings),
    }


def data_card(unit_sets: Sequence[UnitSet]) -> list[dict[str, Any]]:
    """What identifies the data, one entry a task."""
    return [
        {"dataset": u.dataset, "task": u.task, "split": u.split, "n": len(u), "sha256": u.sha256}
        for u in unit_sets
    ]


@contextmanager
def claimed(folder: Path, *, command: str) -> Iterator[None]:
    """Hold a run folder from before its model is loaded until its report is written.

    The first rank of a launch holds it for all of them. OtherRun: it holds files that are no run.
    InUse: another process is writing there.
    """
    with ExitStack() as held:
        if is_first():
            if not (folder / "run.json").exists():
                refuse_foreign(folder)
            held.enter_context(locked(folder, command=command))
        held.enter_context(sharing(folder, command=command))
        yield


class RunFolder:
    """One folder that a command writes, or goes on with; see `earlier_run` for what is refused.

    `fingerprint` is everything that must be equal for old samples to count, `host` what of the
    machine moves the last bits of a score, for the record.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: str,
        command: str,
        fingerprint: dict[str, Any],
        host: dict[str, Any] | None = None,
    ):
        """Claim the folder, or take up the run in it."""
        self.folder, self.file, self.kind = folder, folder / "run.json", kind
        self.fingerprint = json.loads(json.dumps(fingerprint))
        before = earlier_run(folder, kind, self.fingerprint)
        self.resumed = before is not None
        seconds = (before or {}).get("seconds")
        self._seconds_before = seconds if isinstance(seconds, int | float) else 0.0
        self.record: dict[str, Any] = {
            "kvfix": kvfix.__version__,
            "schema": SCHEMA,
            "kind": kind,
            "command": command,
            "started": (before or {}).get("started") or datetime.now(UTC).isoformat(),
            "seconds": self._seconds_before,
            "complete": False,
            "fingerprint": self.fingerprint,
            "versions": versions(),
            "starts": [*earlier_starts(before), start_card(command, host or {})],
        }
        if other := mixed(self.record["starts"]):
            log.warning("%s: units of its starts were scored with %s", folder, "; ".join(other))
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self, *, seconds: float = 0.0, **entries: Any) -> dict[str, Any]:
        """Write `run.json` beside and rename it, so that a reader never sees half a file."""
        self.record |= entries
        self.record["seconds"] = round(self._seconds_before + seconds, 1)
        text = json.dumps(self.record, indent=1, allow_nan=False)
        write_text(self.file, text + "\n")
        return self.record
