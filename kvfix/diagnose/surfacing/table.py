"""How often the answer lies in the image values and does not surface in what the model answers.

A readout answers a multiple-choice question from features alone. Beside the model's own answer to
the same question this gives a 2 x 2 table; a question is unsurfaced if the readout is right and the
answer is wrong. The rule is kvfix's own reading of arXiv 2510.04819, whose exact one is not public.

A readout that guesses is right now and then too. So beside the share stands what the same readout
yields on the features of the other questions of the task (shuffled features): the share beyond that
is evidence that the answer was there.

Shapes: N questions of one subtask, S sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvfix.eval.results import Table
from kvfix.eval.stats.bootstrap import (
    Interval,
    clustered_bootstrap,
    halves,
    pooled_ratio_bootstrap,
)
from kvfix.findings import FEWEST_CLUSTERS
from kvfix.runs.rows import AnswerRow, ReadoutRow

SCORINGS = {"generation": "correct", "logprob": "logprob_correct"}


class Share(NamedTuple):
    """A share in [0, 1], or a difference of two, with its 95 % interval; NaN where unknown."""

    value: float
    low: float
    high: float

    @property
    def ci(self) -> list[float] | None:
        """The interval for JSON."""
        return None if np.isnan(self.low) else [self.low, self.high]


class Readings(NamedTuple):
    """One subtask under one scoring of the answers."""

    ids: list[str]  # N question ids
    clusters: list[str]  # N labels
    answer_N: np.ndarray  # index of the right option
    answered_N: np.ndarray  # bool, the model's answer is right
    choice_NS: np.ndarray  # the option that the readout of each site takes
    options_N: np.ndarray  # number of options


@dataclass(frozen=True)
class Surfacing:
    """What surfaced of one subtask, at the site whose readout was best on other questions."""

    column: int  # index of the site
    held_out: bool  # false if too few clusters were there to choose the site on other questions
    n: int
    counts: tuple[int, int, int, int]  # both right, unsurfaced, answer right alone, neither
    readout: Share  # accuracy of the readout
    answer: Share  # accuracy of the answers
    chance: float  # of a guess among the options
    of_all: Share  # unsurfaced / all questions
    of_wrong: Share  # unsurfaced / questions that were answered wrong
    shuffled: Share  # unsurfaced / all with the features of other questions
    beyond: Share  # `of_all` minus `shuffled`
    clear: bool  # the interval of `beyond` leaves 0 out, and there are clusters enough to tell
    examples: tuple[str, ...]  # ids of unsurfaced questions
    ids: tuple[str, ...]  # of the questions that all figures are of


def surfacing(
    readings: Readings, *, columns: Sequence[int], chosen: bool = False, seed: int = 0
) -> Surfacing:
    """The 2 x 2 table of a subtask and its shares, at one of the sites `columns`.

    The site is chosen by the readout's accuracy on one half of the clusters; all figures are of the
    other half. With fewer than four clusters both are the whole. If the site, the first of the
    columns, was `chosen` on questions that are not among these, all of these report.
    """
    if not readings.ids or not columns:
        raise ValueError(
            f"expected questions and sites, found {len(readings.ids)} and {len(columns)}"
        )
    everyone = np.ones(len(readings.ids), bool)
    right_NS = readings.choice_NS == readings.answer_N[:, None]
    if chosen:
        held_out, at, column = True, everyone, columns[0]
    else:
        held_out = len(set(readings.clusters)) >= 4
        chooses_N = halves(readings.clusters, seed=seed) if held_out else everyone
        column = columns[int(right_NS[chooses_N][:, list(columns)].mean(0).argmax())]
        at = ~chooses_N if held_out else everyone
    right_N, wrong_N = right_NS[at, column], ~readings.answered_N[at]
    clusters = [c for c, use in zip(readings.clusters, at, strict=True) if use]
    unsurfaced_N = right_N & wrong_N
    by_others_N = wrong_N * others_right(readings.choice_NS[at, column], readings.answer_N[at])
    parts = (right_N, ~wrong_N, unsurfaced_N, by_others_N, unsurfaced_N - by_others_N)
    got = clustered_bootstrap(np.stack(parts, axis=1).astype(float), clusters, seed=seed)
    readout, answer, of_all, shuffled, beyond = (_share(got, i) for i in range(len(parts)))
    of_wrong = pooled_ratio_bootstrap(
        unsurfaced_N.astype(float), wrong_N.astype(float), clusters, seed=seed
    )
    enough = int(got.clusters_S[0]) >= FEWEST_CLUSTERS
    ids = [name for name, use in zip(readings.ids, at, strict=True) if use]
    return Surfacing(
        column,
        held_out,
        len(ids),
        (
            int((right_N & ~wrong_N).sum()),
            int(unsurfaced_N.sum()),
            int((~right_N & ~wrong_N).sum()),
            int((~right_N & wrong_N).sum()),
        ),
        readout,
        answer,
        float((1 / readings.options_N[at]).mean()),
        of_all,
        _share(of_wrong, 0),
        shuffled,
        beyond,
        enough and (beyond.low > 0 or beyond.high < 0),
        tuple(name for name, use in zip(ids, unsurfaced_N, strict=True) if use),
        tuple(ids),
    )


def others_right(choice_N: np.ndarray, answer_N: np.ndarray) -> np.ndarray:
    """(N,) share of the OTHER questions whose readout, taken for this one, would be right.

    This is the exact mean over all ways to give a question the features of another.
    """
    n = len(choice_N)
    if n < 2:
        return np.full(n, np.nan)
    same_NN = choice_N[None, :] == answer_N[:, None]
    return (same_NN.sum(1) - same_NN.diagonal()) / (n - 1)


def _share(got: Interval, s: int) -> Share:
    return Share(float(got.value_S[s]), float(got.low_S[s]), float(got.high_S[s]))


def align(
    readouts: Iterable[ReadoutRow], answers: Iterable[AnswerRow], scoring: str
) -> tuple[Readings, Table]:
    """Rows of one subtask -> readings of the questions that have both, and the table of their
    sites.

    `scoring` is `generation` or `logprob`.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring: expected one of {', '.join(SCORINGS)}, found {scoring!r}")
    of = {row.id: row for row in answers}
    table = Table((r for r in readouts if r.id in of), field="choice")
    if np.isnan(table.score_NS).any():
        raise ValueError("expected a readout at every site of every question, found gaps")
    mine = [of[name] for name in table.ids]
    readings = Readings(
        table.ids,
        table.clusters,
        np.array(["ABCDE".index(r.answer) for r in mine], dtype=int),
        np.array([bool(getattr(r, SCORINGS[scoring])) for r in mine], dtype=bool),
        table.score_NS.astype(int),
        np.array([len(r.logprobs or ()) for r in mine], dtype=int),
    )
    return readings, table
