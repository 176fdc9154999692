"""Calls of `kvfix score` on small benchmark folders, and predictions to score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from commands import Ended, call
from PIL import Image


def score(name: str, pred: Path, gt: Path, *more: object) -> Ended:
    """The command, with JSON."""
    return call("score", name, "--pred", pred, "--gt", gt, "--json", *more)


def figures(name: str, pred: Path, gt: Path, *more: object) -> dict[str, Any]:
    """The record of a scoring that must succeed."""
    done = score(name, pred, gt, *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    """The samples of a scored folder."""
    [file] = (folder / "samples").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """A mask in COCO's compressed run-length form."""
    from pycocotools import mask as coco

    found = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def pngs(folder: Path, masks: Mapping[str, np.ndarray], *, suffix: str = ".png") -> Path:
    """An image a mask, as it is."""
    for name, mask in masks.items():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder
