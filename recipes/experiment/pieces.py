"""Carry folders in pieces to a machine without a network, and put them together, checked by hash.

    python recipes/experiment/pieces.py cut carried taught=TAUGHT blink=BLINK2 --mib 56
    python recipes/experiment/pieces.py join carried there    # there/taught, there/blink

`cut` writes carried/000.piece and so on, none larger than asked, with their SHA-256 in
carried/pieces.json. Where all of them lie in one folder again, `join` unpacks them; a piece that is
missing or damaged is named, and then nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

MIB = 2**20
INDEX = "pieces.json"


def cut(folder: Path, named: dict[str, Path], most: int) -> list[Path]:
    """Write the named files and folders as pieces of at most `most` bytes; returns the pieces."""
    folder.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, path in named.items():
            tar.add(path, name)
    whole = packed.getbuffer()
    hashes: dict[str, str] = {}
    for n, start in enumerate(range(0, len(whole), most)):
        piece = folder / f"{n:03d}.piece"
        piece.write_bytes(whole[start : start + most])
        hashes[piece.name] = hashlib.sha256(whole[start : start + most]).hexdigest()
    (folder / INDEX).write_text(json.dumps(hashes, indent=1) + "\n")
    return [folder / name for name in hashes]


def join(folder: Path, out: Path) -> None:
    """Unpack into `out` what `cut` has packed.

    Raises:
        ValueError: Pieces are missing or damaged.
    """
    packed, bad = io.BytesIO(), list[str]()
    for name, expected in json.loads((folder / INDEX).read_text()).items():
        piece = folder / name
        data = piece.read_bytes() if piece.exists() else b""
        if hashlib.sha256(data).hexdigest() != expected:
            bad.append(name)
        packed.write(data)
    if bad:
        raise ValueError(
            f"{folder}: expected the pieces of {INDEX}, found others: {', '.join(bad)}"
        )
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        tar.extractall(out, filter="data")


def main(words: Sequence[str] | None = None) -> None:
    """Cut or join."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ways = parser.add_subparsers(dest="way", required=True)
    cutting = ways.add_parser("cut")
    cutting.add_argument("folder", type=Path)
    cutting.add_argument("named", nargs="+", metavar="NAME=PATH")
    cutting.add_argument("--mib", type=float, default=56.0, help="largest piece")
    joining = ways.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("out", type=Path)
    asked = parser.parse_args(words)
    if asked.way == "join":
        join(asked.folder, asked.out)
        return
    named = {name: Path(path) for name, _, path in (x.partition("=") for x in asked.named)}
    print(*cut(asked.folder, named, int(asked.mib * MIB)), sep="\n")


if __name__ == "__main__":
    main()
