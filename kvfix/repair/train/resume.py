"""What a run folder holds from its earlier starts, and whether this start may go on in it.

`training.json` is written where the steps begin and again where they end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.checkpoint.folder import read_json, sha256_of
from kvfix.data.training.examples import Examples
from kvfix.repair.lora import LoraReport
from kvfix.repair.module import Repair
from kvfix.repair.train.identity import FINGERPRINT, MEND, Identity, check_same, fields_of
from kvfix.repair.train.launch import Launch
from kvfix.repair.train.saves import ADAPTER_FILES, checkpoints, newest_whole, step_of
from kvfix.repair.train.show import LOG, Monitor
from kvfix.runs.lock import LOCK, locked
from kvfix.wording import shown

RECORD, CONFIG = "training.json", "config.yaml"
_OWN = (RECORD, CONFIG, LOG, LOCK)  # what a start leaves that ended before its first checkpoint
_SHOWN = 6  # torn checkpoints, in a message


class Going(NamedTuple):
    """Where a start begins."""

    last: Path | None = None  # the checkpoint to go on from, None for a new run
    step: int = 0  # steps that are done
    record: Mapping[str, Any] = {}  # of the earlier starts, empty without
    fingerprint: Mapping[str, Any] = {}  # of what is gone on with
    torn: Mapping[Path, str] = {}  # newer checkpoints that do not count, and why
    finished: bool = False  # whether nothing is left to do


class Work(NamedTuple):
    """What a start works with."""

    recipe: Any  # the config
    launch: Launch  # how this rank was started
    repair: Repair  # what is trained
    report: LoraReport  # of `attach`
    examples: Examples  # what is learned from
    out: Path  # run folder
    going: Going  # where it begins
    monitor: Monitor  # shows and logs
    identity: Identity  # what must be the same to go on with it
    command: Sequence[str]  # as it was typed


def finished(out: Path) -> bool:
    """Whether a training ended in this folder."""
    record = _record(out)
    return bool(record) and bool(record.get("complete", True))  # before 0.2 it was written last


def look(out: Path, config: Any, *, world: int, command: str) -> Going:
    """What is in the folder; nothing is touched.

    InUse: another process works in it. A ValueError names what else stands against going on, every
    field that differs too.
    """
    try:
        return _look(out, config, world)
    except ValueError:
        if (out / LOCK).exists():  # then what lies there is of no interest yet
            with locked(out, command=command, mend=MEND):
                pass
        raise


def _look(out: Path, config: Any, world: int) -> Going:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder to write to, found a file; {MEND}")
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    names = {n for n in names if n != LOCK and not (n.startswith(".") and n.endswith(".partial"))}
    names = {n.removesuffix(".new") for n in names}
    record = _record(out)
    if not config.resume:
        _check_new(out, names, record)
        return Going(record=record)
    found = newest_whole(out)
    done = bool(record.get("complete")) and int(record.get("steps", 0)) >= config.steps
    if found.last is None and not done:
        why = "; ".join(f"{p.name}: {text}" for p, text in list(found.torn.items())[:_SHOWN])
        raise ValueError(
            f"{out}: expected a whole checkpoint to resume from, found none"
            f"{f' ({why}); {MEND}' if why else '; leave out resume=true to begin anew'}"
        )
    if found.last is None:
        then = record.get("fingerprint", {})
    else:
        then = read_json(found.last / FINGERPRINT)  # in its manifest
    check_same(out, then, {**fields_of(config), "ranks": world})
    step = 0 if found.last is None else step_of(found.last)
    files = record.get("files", {})
    whole = done and hashes(out, files) == files
    if found.last is None and not whole:
        raise ValueError(
            f"{out}: expected the adapter as it was when the training ended, found another one and "
            f"no checkpoint to take it from; {MEND}"
        )
    return Going(found.last, step, record, then, found.torn, finished=whole)


def _check_new(out: Path, names: set[str], record: Mapping[str, Any]) -> None:
    if not names:
        return
    if names <= set(_OWN) and (record.get("kind") == "training" or names == {RECORD}):
        return  # ended before its first checkpoint: nothing is lost
    if checkpoints(out) or names.issuperset(ADAPTER_FILES):
        raise ValueError(
            f"{out}: expected an empty run folder, found another run; set resume=true to go on "
            f"with it, or {MEND}"
        )
    files = ", ".join(shown(name) for name in sorted(names)[:3])
    raise ValueError(
        f"{out}: expected a new or empty folder, found {len(names)} other files ({files}); {MEND}"
    )


# --- what is on disk ------------------------------------------------------------------------------


def _record(out: Path) -> dict[str, Any]:
    file = out / RECORD
    if not file.is_file():
        return {}
    try:
        return read_json(file)
    except ValueError:
        return {}  # not ours, or of a crash before it was renamed: counts as none


def hashes(out: Path, names: Iterable[str]) -> dict[str, str]:
    """Of files of a run folder that are there."""
    return {n: sha256_of([out / n]) for n in names if (out / n).is_file()}
