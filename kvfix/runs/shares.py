"""Each rank writes its samples into a folder of its own; then they are brought together.

A rank locks its folder while the run goes on, so that a rank that outlives a killed launch for a
moment cannot write beside the next one. What a killed launch left is taken in by the next start,
whatever its number of ranks; a unit's rows are in the whole file before they leave the share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kvfix.ranks import everyone, number, ranks
from kvfix.runs.lock import locked
from kvfix.runs.samples import SampleFile

SAMPLES = "samples"


def own_share(path: Path) -> Path:
    """Where this rank writes its units of a samples file; the file itself for a rank alone."""
    return path if ranks() == 1 else _share(path, number())


@contextmanager
def sharing(folder: Path, *, command: str) -> Iterator[None]:
    """Let all ranks of the launch write samples, once the first has taken in what others left.

    Args:
        folder: the run folder, which the first rank has locked.
        command: the command line, for whoever is refused.

    Raises:
        InUse: a rank of an earlier launch is still writing.
    """
    if number() == 0:
        _take_in(folder / SAMPLES, command)
    if ranks() == 1:
        yield
        return
    everyone(None)
    with locked(_folder(folder / SAMPLES, number()), command=command):
        yield


def bring_together(
    file: SampleFile, written: Sequence[Collection[str]], order: Sequence[str]
) -> None:
    """Put the units of all ranks into one file, in the order in which one rank writes them.

    Args:
        file: the samples file, which this rank alone has open.
        written: ids of the units that each rank has written.
        order: ids of all units of the file.

    Raises:
        ValueError: units that a rank has written and this one does not find.
    """
    shares = [_share(file.path, k) for k in range(ranks())] if ranks() > 1 else []
    for share in shares:
        file.take(share)
    if missing := {name for ids in written for name in ids} - file.done:
        raise ValueError(
            f"{file.path.parent}: expected the units of {len(written)} ranks, found "
            f"{len(missing)} of them missing, {min(missing)!r} for one; all ranks must see one "
            "file system there"
        )
    file.sort(order)
    for share in shares:
        share.unlink(missing_ok=True)


def _folder(samples: Path, rank: int) -> Path:
    return samples / f"rank{rank}"


def _share(path: Path, rank: int) -> Path:
    return _folder(path.parent, rank) / path.name


def _take_in(samples: Path, command: str) -> None:
    """Move what ranks of a killed launch have written into the whole files."""
    for folder in sorted(samples.glob("rank*")):
        if not folder.is_dir():
            continue
        with locked(folder, command=command, mend="end it"):
            for share in sorted(folder.glob("*.jsonl")):
                SampleFile(samples / share.name).take(share)
                share.unlink()
        with suppress(OSError):
            folder.rmdir()
