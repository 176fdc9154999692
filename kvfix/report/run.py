"""The run folder: `run.json` at the start and the end, and the check that a resumed run is the same
run.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kvfix
from kvfix.atomic import write_text
from kvfix.data.units import UnitSet
from kvfix.lock import LOCK, locked

# What a process that was killed may leave of a run that had not begun.
LEFTOVERS = (LOCK, "run.json.new", "run.new")
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "numpy", "scipy", "pillow")


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
        "dtype": str(mlm.dtype).removeprefix("torch."),
    }


def data_card(unit_sets: Sequence[UnitSet]) -> list[dict[str, Any]]:
    """What identifies the data, one entry a task."""
    return [
        {"dataset": u.dataset, "task": u.task, "split": u.split, "n": len(u), "sha256": u.sha256}
        for u in unit_sets
    ]


def versions() -> dict[str, str]:
    """Python and the packages whose version can move a number."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out


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

    Raises:
        OtherRun: the folder holds samples of another fingerprint, or is not a run folder.
    """

    def __init__(self, folder: Path, *, kind: str, command: str, fingerprint: dict[str, Any]):
        """Claim the folder, or take up the run in it."""
        self.folder, self.file, self.kind = folder, folder / "run.json", kind
        self.fingerprint = json.loads(json.dumps(fingerprint))
        before = self._before()
        self.resumed = before is not None
        self.record: dict[str, Any] = {
            "kvfix": kvfix.__version__,
            "kind": kind,
            "command": command,
            "started": before["started"] if before else datetime.now(UTC).isoformat(),
            "seconds": before["seconds"] if before else 0.0,
            "complete": False,
            "fingerprint": self.fingerprint,
            "versions": versions(),
        }
        self._seconds_before = self.record["seconds"]
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def _before(self) -> dict[str, Any] | None:
        if not self.file.exists():
            _refuse_foreign(self.folder)
            return None
        before = _parse(self.file)
        old = _flat({"kind": before.get("kind"), **before.get("fingerprint", {})})
        now = _flat({"kind": self.kind, **self.fingerprint})
        differs = [
            f"{key}: then {old.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(old.keys() | now.keys())
            if old.get(key) != now.get(key)
        ]
        if differs:
            raise OtherRun(
                f"{self.folder} holds another run; choose another --out. " + "; ".join(differs)
            )
        return before

    def save(self, *, seconds: float = 0.0, **entries: Any) -> dict[str, Any]:
        """Write `run.json` beside and rename it, so that a reader never sees half a file."""
        self.record |= entries
        self.record["seconds"] = round(self._seconds_before + seconds, 1)
        text = json.dumps(self.record, indent=1, allow_nan=False)
        write_text(self.file, text + "\n")
        return self.record


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


def _flat(item: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, so that a difference is named and nothing else is printed."""
    out: dict[str, Any] = {}
    for key, value in item.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
