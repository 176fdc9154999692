"""The run folder: `run.json` at the start and the end, and the check that a resumed run is the same
run.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kvfix
from kvfix.data.units import UnitSet

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
        self._new = self.file.with_suffix(".new")
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
            # A crash in the very first save leaves the half-written file alone.
            if self.folder.exists() and any(p != self._new for p in self.folder.iterdir()):
                raise OtherRun(
                    f"{self.folder}: expected a new, empty or run folder, found other files; "
                    "choose another --out"
                )
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
        with self._new.open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._new.replace(self.file)
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
