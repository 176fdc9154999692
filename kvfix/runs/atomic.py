"""Files and folders that are there whole or not at all, whatever byte a crash stops at."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kvfix.runs.lock import LOCK, InUse, locked

MANIFEST = "manifest.json"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write, renamed to `path` when its bytes are on disk.

    An exception leaves the old file, or none, as it was.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8"))


def partial_of(target: Path) -> Path:
    """Where `atomic_folder` collects what becomes `target`, on the same file system."""
    target = Path(os.path.realpath(target))
    return target.with_name(f".{target.name}.partial")


@contextmanager
def atomic_folder(target: Path, *, command: str, manifest: bool = False) -> Iterator[Path]:
    """A folder to write into, renamed to `target`, absent or empty, when all of it is on disk.

    Only one process can be in it: a second one is refused with InUse, and what a killed one left is
    removed first. Other ranks of the same training write into `partial_of(target)` between two
    barriers, while the first rank is inside. With `manifest`, `torn` finds what is missing or
    changed later; `command` is for one who is refused.
    """
    _check_target(target)
    partial = partial_of(target)
    with _emptied(partial, command):
        try:
            yield partial
            if manifest:
                _write_manifest(partial)
            _sync_all(partial)
            _rename(partial, Path(os.path.realpath(target)))
        except BaseException:
            _empty(partial, quiet=True)
            raise


@contextmanager
def _emptied(partial: Path, command: str) -> Iterator[None]:
    """Hold a partial folder, without what a killed process left in it; remove it if empty then."""
    try:
        with locked(partial, command=command):
            _empty(partial)
            yield
    finally:
        with suppress(OSError):
            partial.rmdir()


def torn(folder: Path) -> str | None:
    """What of a folder with a manifest is missing or changed, in words; None if it is whole."""
    file = folder / MANIFEST
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["files"]
        entries = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, sha256) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
        if _sha256(path) != sha256:
            return f"{name} has changed since it was written"
    return None


def remove_leftovers(folder: Path, *, command: str) -> list[str]:
    """Remove what killed processes left of folders that were never finished, and name those."""
    gone = []
    for partial in sorted(folder.glob(".*.partial")):
        with suppress(InUse), _emptied(partial, command):
            gone.append(partial.name.removeprefix(".").removesuffix(".partial"))
    return gone


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can promise that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_target(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or any(p.name != LOCK for p in target.iterdir()):
        raise ValueError(
            f"{target}: expected a new or empty folder, found files in it; choose another --out"
        )
    real = Path(os.path.realpath(target))
    if os.path.ismount(real) or Path.cwd().is_relative_to(real):
        raise ValueError(
            f"{target}: expected a folder that can be replaced when all is written, found a mount "
            "point or the current folder; choose a new folder in it"
        )


def _empty(folder: Path, *, quiet: bool = False) -> None:
    """Remove all but the lock, which is held."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=quiet)
        else:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)


def _write_manifest(folder: Path) -> None:
    files: dict[str, Any] = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(folder)
        if path != folder / MANIFEST
    }
    text = json.dumps({"files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_all(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _rename(partial: Path, target: Path) -> None:
    """The lock moves along and is taken out last, so that nobody starts in a half moved folder."""
    if target.is_dir():
        shutil.copymode(target, partial)
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ValueError(
                f"{target}: expected a new or empty folder, found files that were written there "
                "in the meantime; choose another --out"
            ) from error
        raise
    sync_folder(target.parent)
    (target / LOCK).unlink(missing_ok=True)
