"""A linear readout of multiple-choice questions, trained and cross-validated on other questions.

The readouts of `readouts` compare features as they are. Where questions with known answers are at
hand, this one learns which channels to compare: for every option the squared difference, channel by
channel, between what the question refers to and the option (images: mean and standard deviation of
the cells' features; points: the unit feature there), minus its mean over the question's options. An
L2 logistic regression on those tells the right option from the others: a diagonal metric. What it
can read beyond the readouts without training was there but not along all channels alike.

Layer and penalty are chosen by k-fold cross-validation over the training questions alone, whole
clusters changing sides; the questions that are reported have no part in it.

Shapes: Q questions, S sites, K options of a question, N = all options of all questions, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kvfix.eval.grid import PIXEL_CENTRE, sample_cells, to_cells
from kvfix.eval.mcq.readouts import Images, Marked
from kvfix.eval.probes.logistic import Standardiser, fit_logistic, fit_standardiser
from kvfix.eval.source import View

PENALTIES = (1e-1, 1e-2, 1e-3)  # strongest first: it wins a tie
FOLDS = 5
FEWEST = 20  # questions of a subtask; fewer teach nothing but themselves


class Options(NamedTuple):
    """One question as the readout sees it: x_SKD, the right option, and its cluster."""

    x_SKD: torch.Tensor
    answer: int
    cluster: str


class TrainedReadout(NamedTuple):
    """A readout of one site."""

    site: int  # index of the chosen site
    penalty: float  # the chosen l2
    # In [0, 1], of the chosen pair on the folds that did not train it; optimistic, as it is the
    # best of all sites and penalties.
    cv_accuracy: float
    n: int  # training questions
    weight_D: torch.Tensor  # of the options' standardised features
    standardise: Standardiser  # fitted on the training questions, (1, 1, D)

    def choose(self, x_SKD: torch.Tensor) -> int:
        """Index of the option with the highest logit; the first of those that tie."""
        x_1KD = self.standardise(x_SKD[self.site : self.site + 1])
        return int((x_1KD[0] @ self.weight_D).argmax())


def option_features(marked: Marked, kind: str) -> torch.Tensor:
    """(S, K, D) float32: how each option differs from what the question refers to."""
    if isinstance(marked.compared, Images):
        pooled = [_pooled(view, kind) for view in marked.views]
        reference_S1D = pooled[0][:, None]
        options_SKD = torch.stack([pooled[i] for i in marked.compared.options], dim=1)
    else:
        source, target = marked.views
        reference_S1D = _at(source, kind, marked.compared.reference_12)
        options_SKD = _at(target, kind, marked.compared.options_K2)
    apart_SKD = (reference_S1D - options_SKD).square()
    return (apart_SKD - apart_SKD.mean(1, keepdim=True)).cpu()


def _pooled(view: View, kind: str) -> torch.Tensor:
    f_SNC = view.features[kind].flatten(1, 2).float()
    return torch.cat((f_SNC.mean(1), f_SNC.std(1, correction=0)), dim=-1)


def _at(view: View, kind: str, xy_K2: np.ndarray) -> torch.Tensor:
    cells_K2 = to_cells(xy_K2 + PIXEL_CENTRE, view.layout)
    return functional.normalize(sample_cells(view.features[kind], cells_K2), dim=-1)


def train_readout(questions: Sequence[Options], *, seed: int = 0) -> TrainedReadout:
    """Choose site and penalty by cross-validation, then fit on all questions of a subtask.

    A cluster is in one of `FOLDS` folds. Fewer questions than `FEWEST`, or fewer clusters than
    folds, are a ValueError.
    """
    clusters = list(dict.fromkeys(q.cluster for q in questions))
    if len(questions) < FEWEST or len(clusters) < FOLDS:
        raise ValueError(
            f"expected at least {FEWEST} questions in {FOLDS} clusters to train on, found "
            f"{len(questions)} in {len(clusters)}; raise --limit"
        )
    order = np.random.default_rng(seed).permutation(len(clusters))
    fold_of = {clusters[c]: i % FOLDS for i, c in enumerate(order)}
    fold_Q = np.array([fold_of[q.cluster] for q in questions])
    right_PS = np.zeros((len(PENALTIES), len(questions[0].x_SKD)))
    for fold in range(FOLDS):
        teach = [q for q, f in zip(questions, fold_Q, strict=True) if f != fold]
        asked = [q for q, f in zip(questions, fold_Q, strict=True) if f == fold]
        for i, penalty in enumerate(PENALTIES):
            weight_SD, standardise = _fit(teach, penalty)
            for question in asked:
                logit_SK = (standardise(question.x_SKD) @ weight_SD[..., None])[..., 0]
                right_PS[i] += (logit_SK.argmax(1) == question.answer).numpy()
    i, site = divmod(int(right_PS.argmax()), right_PS.shape[1])
    weight_SD, standardise = _fit(questions, PENALTIES[i])
    return TrainedReadout(
        site,
        PENALTIES[i],
        float(right_PS[i, site] / len(questions)),
        len(questions),
        weight_SD[site],
        Standardiser(*(part[site : site + 1] for part in standardise)),
    )


def _fit(questions: Sequence[Options], penalty: float) -> tuple[torch.Tensor, Standardiser]:
    """One classifier a site of right against wrong options; every question weighs the same."""
    x_SND = torch.cat([q.x_SKD for q in questions], dim=1)
    counts = torch.tensor([q.x_SKD.shape[1] for q in questions])
    answers = torch.tensor([q.answer for q in questions])
    y_N = torch.zeros(x_SND.shape[1])
    y_N[counts.cumsum(0) - counts + answers] = 1.0
    weight_N = torch.repeat_interleave(1 / counts, counts)
    standardise = fit_standardiser(x_SND)
    fit = fit_logistic(standardise(x_SND), y_N, weight_N=weight_N, l2=penalty)
    return fit.weight_SC, standardise
