"""The benchmarks' metrics as `evaluate.Metric`s, for a Trainer's `compute_metrics`.

    metric = ReferringIou()
    for predicted, true in batches:
        metric.add_batch(predictions=predicted, references=true)
    print(metric.compute(empty="lisa"))  # {"ciou": ..., "miou": ..., "P@0.5": ...}

Classes, not names to load: no hub, no network. They combine (`evaluate.combine`) and gather over
processes like every other metric. Each example is counted when it is added, and a few numbers of it
are kept, so that masks of a whole split never lie in memory. Masks and label maps come as arrays or
tensors (height, width), in a list where sizes differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from kvfix.eval import metrics
from kvfix.eval.mcq.letters.parse import UNPARSED, extract
from kvfix.eval.metrics import ClassCounts, ObjectScore, Overlap, PairHits

_LABELS = datasets.List(datasets.List(datasets.Value("int32")))
_TEXT = datasets.Value("string")
_NUMBERS = datasets.List(datasets.Value("float64"))


class Face(evaluate.Metric):
    """Counts each example as it is added; a subclass says what to keep of it and how to sum up.

    `evaluate` stores a column for each input. Here the column `predictions` holds the numbers that
    `_count` returns, `references` nothing, and further inputs (names) themselves.
    """

    source: ClassVar[str]
    inputs: ClassVar[dict[str, Any]] = {"predictions": _LABELS, "references": _LABELS}

    def _info(self) -> evaluate.MetricInfo:
        about = str(type(self).__doc__)
        return evaluate.MetricInfo(
            description=about,
            citation=self.source,
            inputs_description=f"\n\nInputs: {', '.join(self.inputs)}. {about}",
            features=datasets.Features(self.inputs),
            reference_urls=[f"https://github.com/{self.source}"],
        )

    def _stored(self) -> datasets.Features:
        kept = {"predictions": _NUMBERS, "references": datasets.Value("null")}
        return datasets.Features(self.inputs | kept)

    # What `evaluate` (0.4.6) asks for the columns to store; by default those of the inputs.
    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        return self._stored()

    def _infer_feature_from_example(self, example: dict[str, Any]) -> datasets.Features:
        return self._stored()

    def add_batch(self, *, predictions: Any = None, references: Any = None, **names: Any) -> None:
        """Count a batch of examples; one that cannot be scored is a ValueError."""
        given = {"predictions": predictions, "references": references, **names}
        if missing := [k for k in self.inputs if given.get(k) is None]:
            raise ValueError(f"expected {', '.join(self.inputs)}, found no {', '.join(missing)}")
        if len({len(column) for column in given.values()}) > 1:
            sizes = ", ".join(f"{len(column)} {k}" for k, column in given.items())
            raise ValueError(f"expected as many of each input, found {sizes}")
        pairs = zip(given["predictions"], given["references"], strict=True)
        super().add_batch(
            predictions=[list(map(float, self._count(mine, true))) for mine, true in pairs],
            references=[None] * len(given["predictions"]),
            **names,
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **names: Any) -> None:
        """Count one example."""
        single = {k: [v] for k, v in names.items()}
        self.add_batch(predictions=[prediction], references=[reference], **single)

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        raise NotImplementedError


class _Masks(Face):
    void: ClassVar[int | None] = metrics.VOID

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        return metrics.overlap(np.asarray(mine), np.asarray(true), void=self.void)


class BinaryIou(_Masks):
    """Foreground IoU, mean and pooled, and FB-IoU of binary masks; truths of 255 count nowhere."""

    source = "juhongm999/hsnet"

    def _compute(self, predictions: Sequence[Any], references: Any) -> dict[str, float]:
        found = _overlaps(predictions)
        return {
            "iou": metrics.mean_iou(found),
            "pooled_iou": metrics.pooled_iou(found),
            "fb_iou": metrics.fb_iou(found),
        }


class Pascal5iIou(_Masks):
    """MIoU and FB-IoU over folds, of VOC `classes` 1 to 20 for each episode; 255 is void."""

    source = "juhongm999/hsnet"
    inputs: ClassVar[dict[str, Any]] = Face.inputs | {"classes": datasets.Value("int32")}

    def _compute(
        self, predictions: Sequence[Any], references: Any, classes: Sequence[int]
    ) -> dict[str, Any]:
        found = metrics.pascal5i(_overlaps(predictions), list(classes))
        folds = {f"miou_fold{fold}": score.miou for fold, score in found.folds.items()}
        return {"miou": found.miou, "fb_iou": found.fb_iou, **folds}


class ReferringIou(_Masks):
    """CIoU, mIoU (gIoU) and P@0.5 to 0.9; anything but 0 is foreground, in the truth too.

    `compute(empty="lavt")` counts an expression without object and prediction as 0, not 1.
    """

    source = "yz93/LAVT-RIS"
    void = None

    def _compute(
        self, predictions: Sequence[Any], references: Any, empty: str = "lisa"
    ) -> dict[str, float]:
        if empty not in metrics.EMPTY_IS:
            raise ValueError(f"empty: expected {' or '.join(metrics.EMPTY_IS)}, found {empty!r}")
        found = metrics.referring(_overlaps(predictions), empty=metrics.EMPTY_IS[empty])
        precision = {f"P@{bound}": share for bound, share in found.precision.items()}
        return {"ciou": found.ciou, "miou": found.miou, **precision}


class Cosegmentation(_Masks):
    """Jaccard index and pixel precision, means over a group's images, then over `groups`."""

    source = "ShirAmir/dino-vit-features"
    inputs: ClassVar[dict[str, Any]] = Face.inputs | {"groups": _TEXT}

    def _compute(
        self, predictions: Sequence[Any], references: Any, groups: Sequence[str]
    ) -> dict[str, float]:
        by_group: dict[str, list[Overlap]] = {}
        for overlap, group in zip(_overlaps(predictions), groups, strict=True):
            by_group.setdefault(group, []).append(overlap)
        found = metrics.cosegmentation(by_group)
        return {"jaccard": found.jaccard, "precision": found.precision}


class ImageNetSIou(Face):
    """MIoU pooled over the dataset; class ids from 1, 0 background, truths of 1000 ignored.

    `config_name` is the number of classes: "50", "300" or "919", or that of another dataset.
    """

    source = "LUSSeg/ImageNet-S"

    def __init__(self, config_name: str = "919", **kwargs: Any):
        super().__init__(config_name, **kwargs)
        self.n_classes = int(config_name)

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        counts = metrics.class_counts(np.asarray(mine), np.asarray(true), self.n_classes)
        rows = np.stack((np.arange(self.n_classes + 1), *counts), axis=1)
        return rows[rows[:, 1:].any(1)].ravel()  # only the classes that occur

    def _compute(self, predictions: Sequence[Any], references: Any) -> dict[str, Any]:
        counts = np.zeros((3, self.n_classes + 1), np.int64)
        for kept in predictions:
            rows = np.asarray(kept, np.int64).reshape(-1, 4)
            counts[:, rows[:, 0]] += rows[:, 1:].T
        found = metrics.class_iou([ClassCounts(*counts)])
        return {"miou": found.miou, "absent_classes": len(found.absent)}


class Pck(Face):
    """Keypoints (x, y) within `alpha` times `sizes` pixels of the truth, per image and per point.

    A size is the longer side of the target's box (PCK bbox) or of the target image (PCK img).
    """

    source = "Tsingularity/dift"
    _points = datasets.List(datasets.List(datasets.Value("float64")))
    inputs: ClassVar[dict[str, Any]] = {
        "predictions": _points,
        "references": _points,
        "sizes": datasets.Value("float64"),
    }

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        return np.concatenate((mine, true), axis=1, dtype=float).ravel()

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Any,
        sizes: Sequence[float],
        alpha: float = 0.1,
    ) -> dict[str, float]:
        hits: list[PairHits] = []
        for kept, size in zip(predictions, sizes, strict=True):
            both = np.asarray(kept).reshape(-1, 4)
            hits.append(metrics.pck_hits(both[:, :2], both[:, 2:], size, alpha))
        return {
            "pck_per_image": metrics.pck_per_image(hits),
            "pck_per_point": metrics.pck_per_point(hits),
        }


class DavisJf(Face):
    """J, F, their recall and decay; an example is a clip of label maps (frames, height, width)."""

    source = "davisvideochallenge/davis2017-evaluation"
    inputs: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("predictions", "references"), datasets.List(_LABELS)
    )

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        clips = ([np.asarray(frame) for frame in clip] for clip in (mine, true))
        return np.ravel(metrics.davis_objects(*clips))

    def _compute(self, predictions: Sequence[Any], references: Any) -> dict[str, float]:
        scores = np.concatenate(
            [np.reshape(p, (-1, len(ObjectScore._fields))) for p in predictions]
        )
        means = dict(zip(ObjectScore._fields, map(float, scores.mean(0)), strict=True))
        return {"j_and_f": (means["j_mean"] + means["f_mean"]) / 2, **means}


class ChoiceAccuracy(Face):
    """Macro and micro accuracy of multiple-choice answers; `tasks` names each question's task.

    `config_name` says whose rules read the letter: kvfix, official, lmms-eval or vlmevalkit.
    """

    source = "zeyofu/BLINK_Benchmark"
    inputs: ClassVar[dict[str, Any]] = {
        "predictions": _TEXT,
        "references": _TEXT,
        "tasks": _TEXT,
    }

    def __init__(self, config_name: str = "kvfix", **kwargs: Any):
        super().__init__(config_name, **kwargs)

    def _count(self, mine: Any, true: Any) -> Iterable[float]:
        letter = extract(mine, self.config_name)
        return (letter == true.strip("()"), letter is UNPARSED)

    def _compute(
        self, predictions: Sequence[Any], references: Any, tasks: Sequence[str]
    ) -> dict[str, float]:
        right, unparsed = np.asarray(predictions, bool).T.tolist()
        found = metrics.choice_accuracy(right, list(tasks))
        rate = sum(unparsed) / len(unparsed)
        return {"macro": found.macro, "micro": found.micro, "unparsed_rate": rate}


def _overlaps(kept: Sequence[Any]) -> list[Overlap]:
    return [Overlap(*map(int, counts)) for counts in kept]
