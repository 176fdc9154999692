"""RefCOCO testA or testB from the hub's parquet: every sentence and the object it means.

Columns: huggingface.co/datasets/lmms-lab/RefCOCO. Each row is one object with all its sentences;
each sentence is one unit (lichengunc/refer, dvlab-research/LISA), its mask the row's flat polygon.
Sentences on one photo form a cluster.

Published figures are of one split each, so one is read: of a folder that has both, say which as
`refcoco=DIR/testA`. The `val` of this form mixes the UNC and Google splits (8,811 rows) and its
`test` is Google's, so figures on them compare with none and both are refused. The original pickles
are never loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.files import check_folder, faults, listed
from kvfix.data.groups import grouped
from kvfix.data.pictures.read import read_picture
from kvfix.data.pictures.rle import decode_rle
from kvfix.data.readers.parquet import RowReader, encoded_image, read_rows
from kvfix.data.texts import bounded, check_askable
from kvfix.data.units import BadUnit, Sentence, UnitSet
from kvfix.wording import shown

TREE = """\
RefCOCO/                                  DIR is this folder or its parent; with both splits there,
                                          pass DIR/testA or DIR/testB
  data/testA-00000-of-00001.parquet       also without data/, or as testA/0000.parquet
  data/testB-00000-of-00001.parquet       columns: image, answer, segmentation, file_name
"""
OFFICIAL_ROWS = {"testA": 1975, "testB": 1810}
_REFUSED = {
    "val": "mixes the UNC and Google splits (8,811 rows)",
    "test": "is Google's split, not UNC's",
    "train": "is for training",
}
_TEXT = ("answer", "segmentation", "file_name")
_SHARD = re.compile(r"(?P<split>\w+?)(-(?P<index>\d+)-of-(?P<count>\d+)(-\w+)?)?")
_PHOTO = re.compile(r"(COCO_\w+2014_\d{12})_\d+")  # REFER appends the object's number


class _Sample(NamedTuple):
    path: Path
    row: int  # within the file
    sentence: int  # within the row
    id: str


class _Found(NamedTuple):
    root: Path
    splits: dict[str, list[Path]]


def refcoco_sentences(folder: Path) -> UnitSet:
    """Every sentence of testA or testB; reads the text columns once, decodes no photo."""
    found = _find(folder)
    if len(found.splits) > 1:
        options = " or ".join(f"refcoco={found.root / s}" for s in found.splits)
        raise ValueError(
            f"{found.root}: expected one split, because published figures are of one each, found "
            f"{' and '.join(found.splits)}; pass {options}"
        )
    ((split, paths),) = found.splits.items()
    samples, sha256 = _scan(split, paths)
    if not samples:
        raise ValueError(f"{found.root}: expected sentences in {split}, found none")
    return _unit_set(split, samples, sha256)


def _unit_set(split: str, samples: list[_Sample], sha256: str) -> UnitSet:
    return UnitSet(
        "referring_segmentation",
        "refcoco",
        split,
        tuple(s.id for s in samples),
        partial(_load, RowReader(("image", *_TEXT)), samples),
        sha256,
        "image",
    )


def refcoco_problems(folder: Path) -> Iterator[str]:
    """Everything wrong with the files of testA and testB; decodes every photo."""
    for split, paths in _find(folder).splits.items():
        samples, sha256 = _scan(split, paths)
        yield from faults(_unit_set(split, samples, sha256).load, *range(len(samples)))
        with_text = {(s.path, s.row) for s in samples}
        for path in paths:
            for row in read_rows(path, required=("file_name",)):
                if (path, row.number) not in with_text:
                    yield f"{path}: row {row.number}: expected sentences in answer, found none"


def refcoco_notes(folder: Path) -> Iterator[str]:
    """How many objects and sentences each split has, and where that is not the official count."""
    for split, paths in _find(folder).splits.items():
        samples, _ = _scan(split, paths)
        rows = len({(s.path, s.row) for s in samples})
        yield f"{split}: {rows:,} objects, {len(samples):,} sentences"
        if rows != OFFICIAL_ROWS[split]:
            yield (
                f"the official {split} has {OFFICIAL_ROWS[split]:,} objects: this is a part of it, "
                "or other data in its form, and results on it are not RefCOCO's"
            )


def _find(folder: Path) -> _Found:
    """The files of testA and testB by split, or of the one that `folder/testA` names."""
    wanted: str | None = None
    if not folder.exists() and folder.name in (*OFFICIAL_ROWS, *_REFUSED):
        folder, wanted = folder.parent, folder.name
    check_folder(folder, "RefCOCO")
    root = next((r for r in (folder, folder / "RefCOCO") if _parquet(r)), folder)
    splits = grouped(_parquet(root), _split_of)
    if not splits:
        raise FileNotFoundError(f"{root}: {_nothing(root)}")
    usable = {s: splits[s] for s in OFFICIAL_ROWS if s in splits}
    if wanted is not None:
        usable = {s: paths for s, paths in usable.items() if s == wanted}
    if not usable:
        why = [f"{s} {_REFUSED[s]}" for s in splits if s in _REFUSED and wanted in (None, s)]
        raise ValueError(
            f"{root}: expected parquet files of {wanted or 'testA or testB'}, found "
            f"{', '.join(splits)}" + "".join(f"; {line}: use testA or testB" for line in why)
        )
    for paths in usable.values():
        _check_complete(paths)
    return _Found(root, usable)


def _parquet(root: Path) -> list[Path]:
    """Parquet files where the hub's forms put them."""
    inner = [root / "data", root / "default"]
    folders = [root, *inner, *(r / s for r in (root, *inner) for s in (*OFFICIAL_ROWS, *_REFUSED))]
    return [path for folder in folders for path in listed(folder, ".parquet")]


def _split_of(path: Path) -> str:
    """`testA` of `testA-00000-of-00001.parquet`, `testA.parquet` or `testA/0000.parquet`."""
    match = _SHARD.fullmatch(path.stem)
    if match is None:
        return path.stem
    return path.parent.name if match["split"].isdigit() else match["split"]


def _nothing(root: Path) -> str:
    expected = "expected testA or testB as parquet files (lmms-lab/RefCOCO on the hub)"
    if any(root.glob("*.p")) or any(root.glob("refcoco/*.p")):
        return f"{expected}, found the original pickles, which can run code and are never loaded"
    if any(root.glob("**/*.arrow")):
        return f"{expected}, found arrow files; write them with `Dataset.to_parquet`"
    return f"{expected}, found none. `kvfix data list` shows the tree"


def _check_complete(paths: list[Path]) -> None:
    """Every part of `-of-N` must be there: a gap would give other figures in silence."""
    for path in paths:
        match = _SHARD.fullmatch(path.stem)
        if match is None or match["count"] is None or int(match["count"]) == len(paths):
            continue
        raise FileNotFoundError(
            f"{path}: expected all {int(match['count'])} parts of {match['split']}, found "
            f"{len(paths)}"
        )


def _scan(split: str, paths: list[Path]) -> tuple[list[_Sample], str]:
    """All sentences in the order of the files, and a digest of all but the photos' bytes."""
    samples: list[_Sample] = []
    whole = hashlib.sha256()
    number = 0
    for path in paths:
        whole.update(f"{path.name}\n{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        for row in read_rows(path, required=_TEXT):
            whole.update(json.dumps(row.cells, default=str).encode())
            answer = row.cells["answer"]
            for k in range(len(answer) if isinstance(answer, list) else 0):
                samples.append(_Sample(path, row.number, k, f"{split}-{number:05d}-{k}"))
            number += 1
    return samples, whole.hexdigest()


def _load(reader: RowReader, samples: list[_Sample], index: int) -> Sentence:
    sample = samples[index]
    where = f"{sample.path}: row {sample.row}"
    try:
        cells = reader.row(sample.path, sample.row)
    except ValueError as error:
        raise BadUnit(str(error)) from error
    text = cells["answer"][sample.sentence]
    if not isinstance(text, str) or not text.strip():
        raise BadUnit(f"{where}: expected a sentence in answer, found {shown(text)}")
    check_askable(text, where, "answer")
    data = _encoded(where, cells["image"])
    photo, header = read_picture(data, where=where, expected="an image")
    polygon = cells["segmentation"]
    try:
        mask_HW = header.mask(_mask(where, polygon, header.stored))
    except BadUnit:
        if header.size == header.stored:
            raise
        mask_HW = _mask(where, polygon, header.size)  # drawn on the photo as it is shown
    cluster = _cluster(where, cells["file_name"])
    return Sentence(sample.id, cluster, photo, text.strip(), mask_HW, "")


def _cluster(where: str, name: Any) -> str:
    """The photo: REFER's names end in the object's number, which is dropped."""
    if not isinstance(name, str) or not name:
        raise BadUnit(f"{where}: expected file_name, which photo it is, found {shown(name)}")
    stem = bounded(Path(name).stem)
    match = _PHOTO.fullmatch(stem)
    return match[1] if match else stem


def _encoded(where: str, cell: Any) -> bytes:
    data = encoded_image(cell)
    if data is None:
        raise BadUnit(f"{where}: expected the photo's bytes in image, found none")
    return data


def _mask(where: str, polygon: Any, size: tuple[int, int]) -> np.ndarray:
    """uint8 (height, width) of a flat polygon x0, y0, x1, y1, ... in pixels, or a BadUnit."""
    from pycocotools import mask as coco

    numbers = polygon if isinstance(polygon, list) else []
    if not all(isinstance(v, (int, float)) for v in numbers):
        raise BadUnit(
            f"{where}: expected one flat polygon in segmentation, found {type(numbers[0]).__name__}"
        )
    flat = np.asarray(numbers, dtype=np.float64)
    if len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
        raise BadUnit(
            f"{where}: expected x0, y0, x1, y1, ... of 3 or more points in segmentation, found "
            f"{len(flat)} numbers"
        )
    width, height = size
    low, high = flat.reshape(-1, 2).min(axis=0), flat.reshape(-1, 2).max(axis=0)
    if low.min() < -1 or high[0] > width + 1 or high[1] > height + 1:
        raise BadUnit(
            f"{where}: expected a polygon within {width} x {height} pixels, found one from "
            f"({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}): the photo is of another size"
        )
    (filled,) = coco.frPyObjects([flat.tolist()], height, width)
    mask_HW = decode_rle((height, width), filled["counts"].decode())
    if not mask_HW.any():
        raise BadUnit(f"{where}: expected an object, found a polygon without a pixel")
    return mask_HW
