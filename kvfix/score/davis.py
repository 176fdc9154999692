"""`kvfix score davis`: the semi-supervised rules of DAVIS on a folder of result masks.

DAVIS-2016 is scored as 2017 with one object for each sequence, which is what its own toolkit
computes (davisvideochallenge/davis-matlab, ``eval_result``): the same J and F, without the first
and the last frame, means, recall and decay of each sequence, and their means over sequences.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.files import digest, read_list
from kvfix.data.readers import davis2016
from kvfix.data.readers.davis import MIN_FRAMES, is_2016
from kvfix.data.units import VOID
from kvfix.eval.metrics import ObjectScore, davis_objects
from kvfix.eval.stats.bootstrap import pooled_ratio_bootstrap
from kvfix.runs.samples import Row
from kvfix.score.davis_masks import Masks, masks_of, read_masks
from kvfix.score.record import Options, Outcome, Watch, unit_row, write_scored

MEASURES = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
TASK = "temporal_correspondence"
_LIST, _MASKS = "ImageSets/2017/val.txt", "Annotations/480p"
_SHOWN = 5  # names in a message before it only counts


@dataclass(frozen=True)
class DavisOptions(Options):
    """What the command line of `kvfix score davis` can say."""

    year: int | None = None  # 2016 or 2017; None: by the truth's list of val, else by its masks


class _Truth(NamedTuple):
    folder: Path  # holds a folder of masks a sequence
    names: tuple[str, ...]
    year: int

    @property
    def dataset(self) -> str:
        return f"davis{self.year}"


def score_davis(options: DavisOptions, *, command: str, watch: Watch) -> Outcome:
    """J, F, recall and decay of every object, as davis2017-evaluation reports them.

    The first and the last frame do not count and need no result; 255 in the truth is background;
    the objects are those of the truth's first frame; an object without a pixel in the results
    scores as an empty mask, an object id beyond them is an error. Means over objects, so a sequence
    with many objects weighs more; intervals resample sequences.

    Args:
        options: predictions are `<sequence>/<frame>.png`, labels as palette indices or grey values,
            or `<sequence>/<object>/<frame>.png`; the truth is the DAVIS folder (sequences of its
            list of val, or all of its `Annotations/480p` if there is no list), or a plain folder
            like the predictions.
        command: the command line, for the record.
        watch: is told how far it is.

    Raises:
        ValueError: sequences or frames without result, sizes or object ids that do not fit, masks
            of 0 and 255 among those of DAVIS-2017, files that are no masks, an `out` that holds
            something else.
        FileNotFoundError: a folder that is not there.
    """
    start = time.monotonic()
    predicted, key = options.predictions, _truth(options.truth, options.year)
    if not predicted.is_dir():
        raise FileNotFoundError(f"{predicted}: expected a folder of results, found no such folder")
    if missing := [n for n in key.names if not (predicted / n).is_dir()]:
        raise ValueError(
            f"{predicted}: expected masks in a folder for each of {len(key.names)} sequences, "
            f"found no folder for {_some(missing)}"
        )
    scores: dict[str, list[ObjectScore]] = {}
    frames: dict[str, int] = {}
    truths: list[Path] = []
    results: list[Path] = []
    with watch.phase("scoring", len(key.names)) as tick:
        for name in key.names:
            true, mine = masks_of(key.folder / name), masks_of(predicted / name)
            assert true is not None  # `_truth` has looked
            if mine is None:
                raise ValueError(_no_masks(predicted / name))
            counted = _counted(true, mine)
            score = _one_object if key.year == 2016 else _objects
            scores[name] = score(true, mine, counted)
            frames[name] = len(counted)
            truths += true.files(true.frames)
            results += mine.files(counted)
            tick(name)
    extra = sorted(p.name for p in predicted.iterdir() if p.is_dir() and p.name not in scores)
    record = {
        **_record(key, scores, frames, extra, options.seed),
        "predictions": {
            "path": str(predicted),
            "n": len(scores),
            "sha256": digest(predicted, annotations=results, photos=()),
        },
        "data": [
            {"dataset": key.dataset, "task": TASK, "split": "val", "n": len(scores)}
            | {"sha256": digest(key.folder, annotations=truths, photos=())}
        ],
    }
    if options.out is not None:
        rules = {"protocol": record["protocol"]}
        rows = _rows(key.dataset, scores)
        write_scored(options.out, record, rows, rules=rules, command=command, start=start)
    return Outcome(record)


def _rows(dataset: str, scores: dict[str, list[ObjectScore]]) -> list[Row]:
    """One an object, because the official means are over objects; a sequence is a cluster."""
    return [
        unit_row((TASK, dataset), f"{name}_{k}", name, "J&F", o.jf, **o._asdict())
        for name, objects in scores.items()
        for k, o in enumerate(objects, start=1)
    ]


def _truth(folder: Path, year: int | None) -> _Truth:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the ground truth, found no such folder")
    root = next((r for r in (folder, folder / "DAVIS") if (r / _MASKS).is_dir()), None)
    masks = folder if root is None else root / _MASKS
    names = None
    if root is not None:
        year = year or _listed_year(root)
        names = _listed_names(root, year)
    if names is None:
        names = tuple(sorted(p.name for p in masks.iterdir() if p.is_dir() and masks_of(p)))
    if not names:
        raise ValueError(
            f"{folder}: expected the DAVIS folder or <sequence>/<frame>.png, found no mask"
        )
    if empty := [n for n in names if masks_of(masks / n) is None]:
        raise ValueError(f"{masks}: expected masks of every sequence, found none of {_some(empty)}")
    return _Truth(masks, names, year or _year(masks / names[0]))


def _listed_year(root: Path) -> int | None:
    """The edition whose list of val a DAVIS folder has; None where it has none."""
    if (root / _LIST).is_file():
        return 2017
    return 2016 if any((root / name).is_file() for name in davis2016.LISTS) else None


def _listed_names(root: Path, year: int | None) -> tuple[str, ...] | None:
    """The sequences of val; None where the folder has no list of the year."""
    if year == 2017 and (root / _LIST).is_file():
        return read_list(root / _LIST)
    if year == 2016 and any((root / name).is_file() for name in davis2016.LISTS):
        return davis2016.sequences(root)[1]
    return None


def _year(sequence: Path) -> int:
    """2016 where the first mask holds 0 and 255 alone, else 2017."""
    masks = masks_of(sequence)
    assert masks is not None
    flat = not masks.objects and is_2016(read_masks(masks, masks.frames[0]))
    return 2016 if flat else 2017


def _no_masks(folder: Path) -> str:
    found = sorted(p.name for p in folder.iterdir())
    return (
        f"{folder}: expected masks <frame>.png or <object>/<frame>.png, found "
        f"{_some(found) if found else 'an empty folder'}"
    )


def _counted(true: Masks, mine: Masks) -> tuple[str, ...]:
    """The frames that count: all of the truth but the first and the last, each with a result."""
    if len(true.frames) < MIN_FRAMES:
        raise ValueError(
            f"{true.folder}: expected at least {MIN_FRAMES} masks (the first and the last do not "
            f"count), found {len(true.frames)}"
        )
    counted = true.frames[1:-1]
    for folder in mine.objects.values() or (mine.folder,):
        if missing := [name for name in counted if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder}: expected a mask for each of {len(counted)} frames, found none for "
                f"{_some(missing)}"
            )
    return counted


def _objects(true: Masks, mine: Masks, counted: tuple[str, ...]) -> list[ObjectScore]:
    """Scores of each object of a sequence of DAVIS-2017."""
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
    for name, result_HW, truth_HW in zip(counted, results, labels[1:-1], strict=True):
        _check_size(mine.folder / name, result_HW, truth_HW)
        if result_HW.max() > n_objects:
            hint = (
                "; results of one object in 0 and 255 need the truth of DAVIS-2016 (--year 2016)"
                if is_2016(result_HW)
                else ""
            )
            raise ValueError(
                f"{mine.folder / name}: expected object ids up to {n_objects}, those of the "
                f"truth's first frame, found {result_HW.max()}{hint}"
            )
    return davis_objects([first, *results, first], labels)


def _one_object(true: Masks, mine: Masks, counted: tuple[str, ...]) -> list[ObjectScore]:
    """The score of a sequence of DAVIS-2016."""
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
    for name, result_HW, truth_HW in zip(counted, results, labels[1:-1], strict=True):
        _check_size(folder / name, result_HW, truth_HW)
    return davis_objects([labels[0], *results, labels[0]], labels)


def _background_only(true: Masks) -> str:
    return f"{true.folder / true.frames[0]}: expected at least one object, found background only"


def _check_size(path: Path, result_HW: np.ndarray, truth_HW: np.ndarray) -> None:
    if result_HW.shape != truth_HW.shape:
        raise ValueError(
            f"{path}: expected {_size(truth_HW)} pixels like the truth, found {_size(result_HW)}"
        )


def _record(
    key: _Truth,
    scores: dict[str, list[ObjectScore]],
    frames: dict[str, int],
    extra: list[str],
    seed: int,
) -> dict[str, Any]:
    sums_SM = np.array([np.sum([_figures(o) for o in objects], 0) for objects in scores.values()])
    counts_S = np.array([len(objects) for objects in scores.values()], float)
    interval = pooled_ratio_bootstrap(sums_SM, counts_S[:, None], list(scores), seed=seed)
    ci = [
        None if np.isnan(low) else [float(low), float(high)]
        for low, high in zip(interval.low_S, interval.high_S, strict=True)
    ]
    # The plain mean over objects, added up in the reference's order.
    every = np.array([_figures(o) for objects in scores.values() for o in objects])
    means = _means(every)
    return {
        "benchmark": key.dataset,
        "protocol": "semi-supervised",
        "seed": seed,
        **means,
        "ci": dict(zip(MEASURES, ci, strict=True)),
        "n_objects": len(every),
        "n_sequences": len(scores),
        "sequences": {
            name: {
                **_means(np.array([_figures(o) for o in objects])),
                "frames": frames[name],
                "objects": {
                    f"{name}_{k}": dict(zip(MEASURES, map(float, _figures(o)), strict=True))
                    for k, o in enumerate(objects, start=1)
                },
            }
            for name, objects in scores.items()
        },
        "ignored": extra,
        "results": [
            {"task": TASK, "dataset": key.dataset, "split": "val"}
            | {"site": None, "layer": None, "head": None, "metric": measure}
            | {"value": means[measure], "ci": ci[m], "n": len(every), "cluster": "sequence"}
            for m, measure in enumerate(MEASURES)
        ],
    }


def _figures(o: ObjectScore) -> tuple[float, ...]:
    """In the order of MEASURES."""
    return (o.jf, o.j_mean, o.j_recall, o.j_decay, o.f_mean, o.f_recall, o.f_decay)


def _means(figures_OM: np.ndarray) -> dict[str, float]:
    """Means over objects; J&F from the means of J and of F, as the reference has it."""
    means = dict(zip(MEASURES, map(float, figures_OM.mean(0)), strict=True))
    return means | {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2}


def _size(labels_HW: np.ndarray) -> str:
    height, width = labels_HW.shape
    return f"{width} x {height}"


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
