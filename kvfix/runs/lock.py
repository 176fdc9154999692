"""One writer a folder: a lock that the kernel lets go of when its process dies, however it dies.

The lock is `flock` on a file in the folder. Who holds it stands in the file, for the one who is
refused; that text decides nothing, so that what a killed process left there is harmless.

On NFS the kernel turns `flock` into a lock on the server: it holds between hosts, unless the share
is mounted with `nolock` or `local_lock=flock`; then it holds on one host only. A file system
without locks (some Lustre mounts) gets a warning instead of a refusal.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

LOCK = ".kvfix.lock"  # no part of a run or a checkpoint; whoever lists a folder skips it
SHOWN = 80  # characters of the other's command line
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of this process's locks


class InUse(ValueError):
    """Another process writes the folder; the message says which."""


@contextmanager
def locked(folder: Path, *, command: str, mend: str = "choose another --out") -> Iterator[None]:
    """Hold a folder for writing, or raise InUse.

    A folder that the lock had to make is removed again if it is still empty at the end. `command`
    and `mend`, what else one who is refused can do than wait, are for messages.
    """
    new = [p for p in (folder, *folder.parents) if not p.exists()]  # innermost first
    owner = os.getpid()
    descriptor = _acquire(folder, mend)
    _held.add(descriptor)
    try:
        _sign(descriptor, command)
        yield
    finally:
        if os.getpid() == owner:  # a forked child leaves its parent's lock alone
            _release(descriptor, folder / LOCK)
            _remove_empty(new)


def _acquire(folder: Path, mend: str) -> int:
    """A descriptor of the lock file that is in the folder now, locked."""
    file = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # whoever held it before has just removed the folder
        except FileExistsError as error:  # a file; or a folder that went while mkdir looked at it
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(error.filename).st_mode):
                    raise
            continue
        try:
            if not _take(descriptor, folder):
                raise InUse(f"{folder} is being written by {_holder(file)}; wait for it, or {mend}")
            if _is_same(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # locked too late: this file has been removed


def _take(descriptor: int, folder: Path) -> bool:
    """Lock without waiting; True too where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.warning(
            "%s: this file system has no locks (%s); take care that nobody else writes there",
            folder,
            error.strerror,
        )
    return True


def _release(descriptor: int, file: Path) -> None:
    """Remove the file while it is still locked, unless the folder has moved away with it."""
    if _is_same(descriptor, file):
        file.unlink()
    _held.discard(descriptor)
    os.close(descriptor)


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        now = os.stat(file)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


def _sign(descriptor: int, command: str) -> None:
    who = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode() + b"\n", 0)


def _holder(file: Path) -> str:
    """Who holds a lock, as far as the file says so."""
    try:
        who = json.loads(file.read_bytes())
        command = str(who["command"])
        shown = command if len(command) <= SHOWN else command[:SHOWN].rstrip() + " ..."
        return f"pid {int(who['pid'])} on {who['host']!s:.60} since {who['since']!s:.40} ({shown})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _leave_to_parent() -> None:
    """A forked child lives on without its parent (a worker, say) and must not keep its locks."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
