"""The run folder: `run.json` at the start and the end, and the check that a resumed run is the same
run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kvfix
from kvfix.data.units import UnitSet
from kvfix.runs.atomic import write_text
from kvfix.runs.fingerprint import differences, mixed, not_recorded, start_card, versions
from kvfix.runs.lock import LOCK, locked
from kvfix.runs.rows import SCHEMA

# What a process that was killed may leave of a run that had not begun.
LEFTOVERS = (LOCK, "run.json.new", "run.new")

log = logging.getLogger(__name__)


class OtherRun(ValueError):
    """The folder holds a run of something else; the message says what differs."""


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

    Raises:
        OtherRun: it holds files that are no run.
        InUse: another process is writing there.
    """
    if not (folder / "run.json").exists():
        _refuse_foreign(folder)
    with locked(folder, command=command):
        yield


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(p.name not in LEFTOVERS for p in folder.iterdir()):
        raise OtherRun(
            f"{folder}: expected a new, empty or run folder, found other files; "
            "choose another --out"
        )


class RunFolder:
    """One folder that a command writes.

    Args:
        folder: created if absent.
        kind: `diagnose`, `eval` or a recipe's name.
        command: the command line, for the record.
        fingerprint: everything that must be equal for old samples to count.
        host: what of the machine moves the last bits of a score, for the record.

    Raises:
        OtherRun: the folder holds samples of another fingerprint, or is not a run folder.
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
        before = self._before()
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
            "starts": [*_starts(before), start_card(command, host or {})],
        }
        if other := mixed(self.record["starts"]):
            log.warning("%s: units of its starts were scored with %s", folder, "; ".join(other))
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def _before(self) -> dict[str, Any] | None:
        if not self.file.exists():
            _refuse_foreign(self.folder)
            return None
        before = _parse(self.file)
        found = before.get("fingerprint")
        old = {"kind": before.get("kind"), **(found if isinstance(found, dict) else {})}
        now = {"kind": self.kind, **self.fingerprint}
        unknown = not_recorded(old, now)
        if differs := differences(old, {k: v for k, v in now.items() if k not in unknown}):
            raise OtherRun(
                f"{self.folder} holds another run; choose another --out. " + "; ".join(differs)
            )
        if unknown:
            raise OtherRun(
                f"{self.folder} was begun by an older kvfix, which did not record "
                f"{', '.join(unknown)}: whether its units were scored in the same way is unknown; "
                "choose another --out (kvfix compare still reads it)"
            )
        if (schema := before.get("schema", 0)) != SCHEMA:
            raise OtherRun(
                f"{self.folder}: expected samples of schema {SCHEMA}, found schema {schema}, of "
                "another kvfix; choose another --out (kvfix compare still reads a finished run)"
            )
        return before

    def save(self, *, seconds: float = 0.0, **entries: Any) -> dict[str, Any]:
        """Write `run.json` beside and rename it, so that a reader never sees half a file."""
        self.record |= entries
        self.record["seconds"] = round(self._seconds_before + seconds, 1)
        text = json.dumps(self.record, indent=1, allow_nan=False)
        write_text(self.file, text + "\n")
        return self.record


def _starts(before: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The earlier starts; of an older kvfix's record, the first is all that is known."""
    if before is None:
        return []
    if isinstance(found := before.get("starts"), list):
        return found
    known = {"time": before.get("started"), "command": before.get("command")}
    return [known | {"versions": before.get("versions")}]


def read_run(folder: Path) -> dict[str, Any]:
    """The `run.json` of a finished run.

    Raises:
        FileNotFoundError: no run there.
        ValueError: not a JSON object.
    """
    file = folder / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder}: expected a run folder with run.json, found none")
    return _parse(file)


def _parse(file: Path) -> dict[str, Any]:
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, found {error}") from error
    if not isinstance(run, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(run).__name__}")
    return run
