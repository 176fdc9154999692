"""Checkpoints of a training: there whole or not at all, the newest whole one found again.

A checkpoint is written beside its place, with a manifest of sizes and hashes of all its files as
its last one, and renamed. Older ones go only when the new one is in its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from kvfix.runs.atomic import atomic_folder, partial_of, sync_folder, torn

PREFIX = "checkpoint-"
BESIDE = "kvfix_heads.safetensors"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # those without which none is
TRAINED_FILES = (*ADAPTER_FILES, BESIDE)


class Found(NamedTuple):
    """What a run folder has to go on from."""

    last: Path | None  # the newest whole checkpoint, None without
    torn: dict[Path, str]  # newer ones that do not count, and why


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def checkpoints(out: Path) -> list[Path]:
    """All of a run folder, whole or not, in the order of their steps."""
    found = [p for p in out.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def newest_whole(out: Path) -> Found:
    """Read checkpoints from the newest on, until one is as it was written."""
    bad: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(out)):
        why = torn(checkpoint)
        if why is None:
            return Found(checkpoint, bad)
        bad[checkpoint] = why
    return Found(None, bad)


@contextmanager
def together(
    target: Path, *, main: bool, wait: Callable[[], object], command: str
) -> Iterator[Path]:
    """A folder that all ranks write into; it is in its place when the last one is done.

    What lies at its `target` was never whole, and goes. Rank 0, the `main` one, prepares, lists,
    syncs and renames it; `wait` is for all ranks.
    """
    if main and target.exists():
        shutil.rmtree(target)
    with atomic_folder(target, command=command, manifest=True) if main else nullcontext():
        wait()
        yield partial_of(target)
        wait()
    wait()


def rotate(newest: Path, *, keep: int, torn: Collection[Path] = ()) -> None:
    """Remove checkpoints before the newest, so that `keep` stay; torn ones go first."""
    others = [p for p in checkpoints(newest.parent) if p != newest]
    older = [p for p in others if p not in torn and step_of(p) < step_of(newest)]
    kept = older[max(len(older) - (keep - 1), 0) :]
    for checkpoint in others:
        if checkpoint not in kept:
            _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """By another name first: half removed, it is no checkpoint any more."""
    aside = partial_of(checkpoint)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def publish(files: Sequence[Path], out: Path) -> None:
    """Copy what was trained into the run folder, each file whole or not at all; weights last."""
    for file in sorted(files, key=lambda f: f.suffix == ".safetensors"):
        new = out / f"{file.name}.new"
        shutil.copyfile(file, new)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(out / file.name)
    sync_folder(out)
