"""The table of benchmarks that `kvfix score` knows, by the command's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvfix.data.readers.imagenet_s import imagenet_s_truths
from kvfix.data.readers.msrc import msrc_truths
from kvfix.data.readers.pascal import pascal_truths
from kvfix.data.readers.spair import spair_truths
from kvfix.data.units import Truths
from kvfix.eval.mcq.accuracy import ACCURACY_PROTOCOL
from kvfix.score import blink, davis, imagenet_s, msrc, pascal5i, refcoco, spair
from kvfix.score.record import Benchmark


def _plain(reader: Callable[[Path], Truths]) -> Callable[[Path, Mapping[str, Any]], Truths]:
    """A reader that no rule concerns."""
    return lambda folder, rules: reader(folder)


BENCHMARKS: dict[str, Benchmark] = {
    "blink": Benchmark(
        "BLINK",
        *(blink.truths, blink.predictions, blink.rows, blink.results, blink.details, blink.notes),
        recorded=("profile", "parsed"),
        protocol=ACCURACY_PROTOCOL,
        oddities={
            "missing": "questions without a prediction, which count as wrong",
            "not_text": "predictions that are null or not text, which count as wrong",
            "unknown": "predictions for questions that the answers do not have, left out",
            "disagreeing": "right answers in the dump that the answer file, which counts, denies",
        },
        lacking="expected predictions for at least 95 % of the questions, found {found} of {n}; "
        "the others count as wrong",
    ),
    "davis": Benchmark(
        "DAVIS, semi-supervised, means over objects",
        *(davis.truths, davis.Sequences, davis.rows, davis.results, davis.details),
        metric="J&F",
        protocol="semi-supervised",
        oddities={"ignored": "folders of no sequence of the truth, ignored"},
    ),
    "spair": Benchmark(
        "SPair-71k, percentage of correct keypoints",
        *(_plain(spair_truths), spair.predictions, spair.rows, spair.results),
        metric="PCK@0.1",
    ),
    "refcoco": Benchmark(
        "RefCOCO, referring segmentation",
        *(refcoco.truths, refcoco.predictions, refcoco.rows, refcoco.results),
        metric="IoU",
        recorded=("profile",),
    ),
    "pascal5i": Benchmark(
        "Pascal-5i, five-shot, means over folds",
        *(_plain(pascal_truths), pascal5i.predictions, pascal5i.rows, pascal5i.results),
        *(pascal5i.details, pascal5i.notes),
        metric="IoU",
    ),
    "imagenet_s": Benchmark(
        "ImageNet-S, all classes and background",
        *(_plain(imagenet_s_truths), imagenet_s.predictions, imagenet_s.rows, imagenet_s.results),
        *(imagenet_s.details, imagenet_s.notes),
        metric="IoU",
    ),
    "msrc": Benchmark(
        "MSRC co-segmentation, means over groups",
        *(_plain(msrc_truths), msrc.predictions, msrc.rows, msrc.results, msrc.details),
        metric="J",
    ),
}
