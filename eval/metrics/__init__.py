"""Metrics of the benchmarks as pure functions: float64, in [0, 1], equal to their references."""
# ruff: noqa: F401 - what a caller may want of the modules of this folder, under one name

from kvfix.eval.mcq.accuracy import ChoiceAccuracy, choice_accuracy
from kvfix.eval.metrics.classes import (
    IGNORE,
    ClassCounts,
    ClassIoU,
    class_counts,
    class_ids,
    class_iou,
)
from kvfix.eval.metrics.davis import ObjectScore, davis_f, davis_j, davis_objects, decay, recall
from kvfix.eval.metrics.masks import (
    EMPTY_IS,
    VOID,
    Overlap,
    class_miou,
    cosegmentation,
    fb_iou,
    mean_iou,
    overlap,
    pascal5i,
    pooled_iou,
    pooled_ratio,
    referring,
)
from kvfix.eval.metrics.points import PairHits, pck_hits, pck_per_image, pck_per_point
