"""`kvfix score davis`: the semi-supervised rules of DAVIS-2017 on a folder of result masks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.commands.score_record import Options, Outcome, Watch, unit_row, write_scored
from kvfix.data.davis import MIN_FRAMES
from kvfix.data.files import digest, listed, read_labels, read_list
from kvfix.data.units import VOID
from kvfix.eval.metrics import ObjectScore, davis_objects
from kvfix.eval.samples import Row
from kvfix.eval.stats import pooled_ratio_bootstrap

MEASURES = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
TASK, DATASET = "temporal_correspondence", "davis2017"
_LIST, _MASKS = "ImageSets/2017/val.txt", "Annotations/480p"
_SHOWN = 5  # names in a message before it only counts


class _Truth(NamedTuple):
    folder: Path  # holds a folder of masks a sequence
    names: tuple[str, ...]


def score_davis(options: Options, *, command: str, watch: Watch) -> Outcome:
    """J, F, recall and decay of every object, as davis2017-evaluation reports them.

    The first and the last frame do not count and need no result; 255 in the truth is background;
    the objects are those of the truth's first frame; an object without a pixel in the results
    scores as an empty mask, an object id beyond them is an error. Means over objects, so a sequence
    with many objects weighs more; intervals resample sequences.

    Args:
        options: predictions are `<sequence>/<frame>.png`, labels as palette indices or grey values;
            the truth is the DAVIS folder (sequences of its `ImageSets/2017/val.txt`, or all of its
            `Annotations/480p` if there is no list), or a plain folder like the predictions.
        command: the command line, for the record.
        watch: is told how far it is.

    Raises:
        ValueError: sequences or frames without result, sizes or object ids that do not fit, the
            0/255 masks of DAVIS-2016, files that are no masks, an `out` that holds something else.
        FileNotFoundError: a folder that is not there.
    """
    start = time.monotonic()
    predicted, key = options.predictions, _truth(options.truth)
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
            files = listed(key.folder / name, ".png")
            scores[name] = _sequence(predicted / name, key.folder / name, files)
            frames[name] = len(files) - 2
            truths += files
            results += [predicted / name / f.name for f in files[1:-1]]
            tick(name)
    extra = sorted(p.name for p in predicted.iterdir() if p.is_dir() and p.name not in scores)
    record = {
        **_record(scores, frames, extra, options.seed),
        "predictions": {
            "path": str(predicted),
            "n": len(scores),
            "sha256": digest(predicted, annotations=results, photos=()),
        },
        "data": [
            {"dataset": DATASET, "task": TASK, "split": "val", "n": len(scores)}
            | {"sha256": digest(key.folder, annotations=truths, photos=())}
        ],
    }
    if options.out is not None:
        rules = {"protocol": record["protocol"]}
        rows = _rows(scores)
        write_scored(options.out, record, rows, rules=rules, command=command, start=start)
    return Outcome(record)


def _rows(scores: dict[str, list[ObjectScore]]) -> list[Row]:
    """One an object, because the official means are over objects; a sequence is a cluster."""
    return [
        unit_row((TASK, DATASET), f"{name}_{k}", name, "J&F", o.jf, **o._asdict())
        for name, objects in scores.items()
        for k, o in enumerate(objects, start=1)
    ]


def _truth(folder: Path) -> _Truth:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the ground truth, found no such folder")
    for root in (folder, folder / "DAVIS"):
        if (root / _MASKS).is_dir():
            masks, listing = root / _MASKS, root / _LIST
            names = read_list(listing) if listing.exists() else _with_masks(masks)
            break
    else:
        masks, names = folder, _with_masks(folder)
    if not names:
        raise ValueError(
            f"{folder}: expected the DAVIS folder or <sequence>/<frame>.png, found no mask"
        )
    if empty := [n for n in names if not listed(masks / n, ".png")]:
        raise ValueError(f"{masks}: expected masks of every sequence, found none of {_some(empty)}")
    return _Truth(masks, tuple(names))


def _with_masks(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and listed(p, ".png")))


def _sequence(predicted: Path, truth: Path, files: tuple[Path, ...]) -> list[ObjectScore]:
    if len(files) < MIN_FRAMES:
        raise ValueError(
            f"{truth}: expected at least {MIN_FRAMES} masks (the first and the last do not count), "
            f"found {len(files)}"
        )
    counted = files[1:-1]
    if missing := [f.name for f in counted if not (predicted / f.name).is_file()]:
        raise ValueError(
            f"{predicted}: expected a mask for each of {len(counted)} frames, found none for "
            f"{_some(missing)}"
        )
    labels = [read_labels(f) for f in files]
    first = labels[0]
    if VOID in first and not ((first > 0) & (first < VOID)).any():
        raise ValueError(
            f"{files[0]}: expected object labels 1..n (DAVIS-2017), found 0 and 255 only: a mask "
            "of DAVIS-2016, which would be read as all void"
        )
    n_objects = int(np.where(first == VOID, 0, first).max())
    if n_objects == 0:
        raise ValueError(f"{files[0]}: expected at least one object, found background only")
    results = [read_labels(predicted / f.name) for f in counted]
    for file, result_HW, truth_HW in zip(counted, results, labels[1:-1], strict=True):
        where = predicted / file.name
        if result_HW.shape != truth_HW.shape:
            raise ValueError(
                f"{where}: expected {_size(truth_HW)} pixels like the truth, found "
                f"{_size(result_HW)}"
            )
        if result_HW.max() > n_objects:
            raise ValueError(
                f"{where}: expected object ids up to {n_objects}, those of the truth's first "
                f"frame, found {result_HW.max()}"
            )
    return davis_objects([first, *results, first], labels)


def _record(
    scores: dict[str, list[ObjectScore]], frames: dict[str, int], extra: list[str], seed: int
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
        "benchmark": DATASET,
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
            {"task": TASK, "dataset": DATASET, "split": "val"}
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
