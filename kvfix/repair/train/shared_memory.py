"""DeepSpeed's shared memory on machines without a GPU, which it never gives back by itself.

Each rank puts 66 MiB under a name in /dev/shm and leaves the name there when it ends, however it
ends (DeepSpeed 0.19.8, `csrc/cpu/comm/shm.cpp`: nothing calls `shared_close`). Memory without a
name goes with its last process, so the names are taken away as soon as all ranks have met.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
_NAME = "deepspeed_allreduce_buffer_"
_FRESH = 60.0  # seconds in which a rank may have made one that nobody has mapped yet


def sweep(folder: Path = SHARED) -> int:
    """Remove what ended trainings of this user left and nobody has mapped; the bytes that frees."""
    mine, old = os.getuid(), time.time() - _FRESH
    left = {}
    for file in folder.glob(f"{_NAME}{mine}_*"):
        with suppress(OSError):
            found = file.stat()
            if found.st_uid == mine and found.st_mtime < old:
                left[file] = found.st_blocks * 512
    if not left:
        return 0
    used = _mapped()
    gone = 0
    for file, size in left.items():
        if file.name not in used:
            with suppress(OSError):
                file.unlink()
                gone += size
    return gone


def forget(rank: int, folder: Path = SHARED) -> None:
    """Take away the name of this rank's memory, once every rank has mapped it."""
    place = f"{os.environ.get('MASTER_ADDR', '')}_{os.environ.get('MASTER_PORT', '')}"
    (folder / f"{_NAME}{os.getuid()}_{place}_{rank}").unlink(missing_ok=True)


def _mapped() -> set[str]:
    """Names of shared memory that some process uses, as far as they may be read."""
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            for line in maps.read_text(errors="replace").splitlines():
                if _NAME in line:
                    names.add(line.rpartition("/")[2].removesuffix(" (deleted)"))
    return names
