"""`kvfix score davis`: the semi-supervised rules of DAVIS on a folder of result masks.

DAVIS-2016 is scored as 2017 with one object for each sequence, which is what its own toolkit
computes (davisvideochallenge/davis-matlab, ``eval_result``): the same J and F, without the first
and the last frame, means, recall and decay of each sequence, and their means over sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvfix.data.files import digest, read_list
from kvfix.data.readers import davis2016
from kvfix.data.readers.davis import MIN_FRAMES, is_2016
from kvfix.data.units import VOID, Truths, UnitSet
from kvfix.eval.metrics.davis import ObjectScore, davis_objects
from kvfix.eval.pooled import mean
from kvfix.runs.rows import ProbeRow, Result
from kvfix.score.davis_masks import Masks, masks_of, read_masks
from kvfix.score.predictions import check_size, some
from kvfix.score.record import Scoring, unread

# Name of each figure -> the field of a row that it is the mean of.
MEASURES = {
    **{"J&F-Mean": "score", "J-Mean": "j_mean", "J-Recall": "j_recall", "J-Decay": "j_decay"},
    **{"F-Mean": "f_mean", "F-Recall": "f_recall", "F-Decay": "f_decay"},
}
_LIST, _MASKS = "ImageSets/2017/val.txt", "Annotations/480p"


class Sequences:
    """Result masks in a folder for each sequence of the truth; all of them must be there."""

    def __init__(self, folder: Path, truths: Truths[Masks]):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of results, found no such folder")
        self.folder, self.ids, self.used = folder, truths.units.ids, list[Path]()
        if absent := [n for n in self.ids if not (folder / n).is_dir()]:
            raise ValueError(
                f"{folder}: expected masks in a folder for each of {len(self.ids)} sequences, "
                f"found no folder for {some(absent, 5)}"
            )
        self.missing: list[str] = []
        self.unknown = sorted(
            p.name for p in folder.iterdir() if p.is_dir() and p.name not in self.ids
        )

    def counted(self, true: Masks) -> tuple[Masks, tuple[str, ...]]:
        """The results of a sequence, and its frames that count: all but the first and the last."""
        mine = masks_of(self.folder / true.folder.name)
        if mine is None:
            raise ValueError(_no_masks(self.folder / true.folder.name))
        if len(true.frames) < MIN_FRAMES:
            raise ValueError(
                f"{true.folder}: expected at least {MIN_FRAMES} masks (the first and the last do "
                f"not count), found {len(true.frames)}"
            )
        counted = true.frames[1:-1]
        for folder in mine.objects.values() or (mine.folder,):
            if absent := [name for name in counted if not (folder / name).is_file()]:
                raise ValueError(
                    f"{folder}: expected a mask for each of {len(counted)} frames, found none for "
                    f"{some(absent, 5)}"
                )
        self.used += mine.files(counted)
        return mine, counted

    def card(self) -> dict[str, Any]:
        """Which masks were used, for the record."""
        sha256 = digest(self.folder, annotations=self.used, photos=())
        return {"path": str(self.folder), "n": len(self.ids), "sha256": sha256}


_Job = Scoring[Masks, Sequences]


def truths(folder: Path, rules: Mapping[str, Any]) -> Truths[Masks]:
    """The sequences of val in a DAVIS folder, or all of a folder of masks alike."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the ground truth, found no such folder")
    year, names, below = rules["year"], None, folder
    if root := next((r for r in (folder, folder / "DAVIS") if (r / _MASKS).is_dir()), None):
        year, names = _listed(root, year)
        below = root / _MASKS
    if names is None:
        names = tuple(sorted(p.name for p in below.iterdir() if p.is_dir() and masks_of(p)))
    if not names:
        raise ValueError(
            f"{folder}: expected the DAVIS folder or <sequence>/<frame>.png, found no mask"
        )
    masks = [found for name in names if (found := masks_of(below / name))]
    if empty := [name for name in names if masks_of(below / name) is None]:
        raise ValueError(
            f"{below}: expected masks of every sequence, found none of {some(empty, 5)}"
        )
    year = year or _year(masks[0])
    files = [path for m in masks for path in m.files(m.frames)]
    units = UnitSet(
        *("temporal_correspondence", f"davis{year}", "val", names, unread),
        sha256=digest(below, annotations=files, photos=()),
        cluster="sequence",
    )
    return Truths(units, masks.__getitem__)


def rows(job: _Job, name: str, truth: Masks) -> Iterator[ProbeRow]:
    """A row for each object of the truth's first frame, as the official means are over objects.

    255 in the truth is background. An object that the results lack is an empty mask, one beyond
    those of the first frame an error.
    """
    mine, counted = job.predictions.counted(truth)
    read = _one_object if job.units.dataset == "davis2016" else _objects
    for k, found in enumerate(read(truth, mine, counted), start=1):
        yield job.row(f"{name}_{k}", name, "J&F", found.jf, **found._asdict())


def results(job: _Job) -> Iterator[Result]:
    """Means over objects; a sequence with many weighs more. Intervals resample sequences."""
    for measure, field in MEASURES.items():
        yield job.result(measure, mean(job.columns(), field))


def details(job: _Job, results: list[Result]) -> dict[str, Any]:
    """The figures by name, and those of each sequence and object."""
    sequences = {}
    for name, masks in zip(job.units.ids, map(job.truths.load, range(len(job.units))), strict=True):
        mine = list(job.columns(cluster=name).rows)
        sequences[name] = {
            **{m: float(np.mean([r.number(field) for r in mine])) for m, field in MEASURES.items()},
            "frames": len(masks.frames) - 2,
            "objects": {r.id: {m: r.number(field) for m, field in MEASURES.items()} for r in mine},
        }
    return {
        **{r["metric"]: r["value"] for r in results},
        "ci": {r["metric"]: r["ci"] for r in results},
        "n_objects": len(job.rows),
        "n_sequences": len(sequences),
        "sequences": sequences,
        "ignored": job.predictions.unknown,
    }


def _listed(root: Path, year: int | None) -> tuple[int | None, tuple[str, ...] | None]:
    """The edition and the sequences of a DAVIS folder's list of val; None where it has no such."""
    if year != 2016 and (root / _LIST).is_file():
        return 2017, read_list(root / _LIST)
    if year != 2017 and any((root / name).is_file() for name in davis2016.LISTS):
        return 2016, davis2016.sequences(root)[1]
    return year, None


def _year(masks: Masks) -> int:
    """2016 where the first mask holds 0 and 255 alone, else 2017."""
    flat = not masks.objects and is_2016(read_masks(masks, masks.frames[0]))
    return 2016 if flat else 2017


def _no_masks(folder: Path) -> str:
    found = sorted(p.name for p in folder.iterdir())
    return (
        f"{folder}: expected masks <frame>.png or <object>/<frame>.png, found "
        f"{some(found, 5) if found else 'an empty folder'}"
    )


def _objects(true: Masks, mine: Masks, counted: tuple[str, ...]) -> list[ObjectScore]:
    labels = [read_masks(true, name) for name in true.frames]
    first = labels[0]
    if is_2016(first):
        raise ValueError(
            f"{true.folder / true.frames[0]}: expected object labels 1..n (DAVIS-2017), found 0 "
            "and 255 only: a mask of DAVIS-2016, which would be read as all void; --year 2016 "
            "scores those"
        )
    n_objects = int(np.where(first == VOID, 0, first).max())
    if n_objects == 0:
        raise ValueError(_background_only(true))
    results = [read_masks(mine, name) for name in counted]
    _check_sizes(mine.folder, counted, results, labels)
    for name, result_HW in zip(counted, results, strict=True):
        if result_HW.max() > n_objects:
            hint = "; results of one object in 0 and 255 need the truth of DAVIS-2016 (--year 2016)"
            raise ValueError(
                f"{mine.folder / name}: expected object ids up to {n_objects}, those of the "
                f"truth's first frame, found {result_HW.max()}{hint if is_2016(result_HW) else ''}"
            )
    return davis_objects([first, *results, first], labels)


def _one_object(true: Masks, mine: Masks, counted: tuple[str, ...]) -> list[ObjectScore]:
    if true.objects:
        raise ValueError(
            f"{true.folder}: expected masks <frame>.png of DAVIS-2016, found folders of objects"
        )
    if len(mine.objects) > 1:
        raise ValueError(
            f"{mine.folder}: expected one object (DAVIS-2016), found folders of {len(mine.objects)}"
        )
    read = davis2016.object_reader(true.folder / true.frames[0])
    labels = [read(true.folder / name) for name in true.frames]
    if not labels[0].any():
        raise ValueError(_background_only(true))
    [folder] = mine.objects.values() or (mine.folder,)
    results = [davis2016.read_result(folder / name) for name in counted]
    _check_sizes(folder, counted, results, labels)
    return davis_objects([labels[0], *results, labels[0]], labels)


def _check_sizes(
    folder: Path, counted: tuple[str, ...], results: list[np.ndarray], labels: list[np.ndarray]
) -> None:
    for name, result_HW, truth_HW in zip(counted, results, labels[1:-1], strict=True):
        check_size(folder / name, result_HW, truth_HW)


def _background_only(true: Masks) -> str:
    return f"{true.folder / true.frames[0]}: expected at least one object, found background only"
