"""What resumes a run: the record that a folder holds already, and what must be equal to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfix.data.json_object import json_object
from kvfix.runs.fingerprint import differences, not_recorded
from kvfix.runs.lock import LOCK
from kvfix.runs.rows import SCHEMA

# What a process that was killed may leave of a run that had not begun.
LEFTOVERS = (LOCK, "run.json.new", "run.new")


class OtherRun(ValueError):
    """The folder holds a run of something else; the message says what differs."""


def earlier_run(folder: Path, kind: str, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the run that a folder holds, to go on with; None in a new or empty folder.

    Raises:
        OtherRun: It was begun with other settings, by another kvfix, or is no run.
    """
    if not (folder / "run.json").exists():
        refuse_foreign(folder)
        return None
    before = read_run(folder)
    found = before.get("fingerprint")
    old = {"kind": before.get("kind"), **(found if isinstance(found, dict) else {})}
    now = {"kind": kind, **fingerprint}
    unknown = not_recorded(old, now)
    if differs := differences(old, {k: v for k, v in now.items() if k not in unknown}):
        raise OtherRun(f"{folder} holds another run; choose another --out. " + "; ".join(differs))
    if unknown:
        raise OtherRun(
            f"{folder} was begun by an older kvfix, which did not record "
            f"{', '.join(unknown)}: whether its units were scored in the same way is unknown; "
            "choose another --out (kvfix compare still reads it)"
        )
    if (schema := before.get("schema", 0)) != SCHEMA:
        raise OtherRun(
            f"{folder}: expected samples of schema {SCHEMA}, found schema {schema}, of "
            "another kvfix; choose another --out (kvfix compare still reads a finished run)"
        )
    return before


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds files but no run."""
    files = (p for p in folder.rglob("*") if not p.is_dir())
    if any(p.name not in LEFTOVERS for p in files):
        raise OtherRun(
            f"{folder}: expected a new, empty or run folder, found other files; "
            "choose another --out"
        )


def earlier_starts(before: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The earlier starts; of an older kvfix's record, the first is all that is known."""
    if before is None:
        return []
    if isinstance(found := before.get("starts"), list):
        return found
    known = {"time": before.get("started"), "command": before.get("command")}
    return [known | {"versions": before.get("versions")}]


def read_run(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    file = folder / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder}: expected a run folder with run.json, found none")
    return json_object(file.read_bytes(), file)


def read_finished(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run that was not interrupted, or a ValueError."""
    record = read_run(folder)
    if record.get("complete") is False:
        raise ValueError(
            f"{folder}: expected a finished run, found one that was interrupted; start its command "
            "again, it goes on where it stopped"
        )
    return record
