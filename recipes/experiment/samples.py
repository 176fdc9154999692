"""What the trials of `run.py` left on disk, read back.

Shapes: N questions, S value layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from run import Trial

from kvfix.checkpoint.folder import read_json
from kvfix.diagnose.surfacing.table import align
from kvfix.eval.mcq.readouts import READOUTS
from kvfix.eval.probes.tasks import TASKS
from kvfix.runs.rows import AnswerRow, ReadoutRow, Rows

R = TypeVar("R", AnswerRow, ReadoutRow)


class Answers(NamedTuple):
    """Of one test: ids, kinds and right letters of its questions, and what was answered."""

    ids: list[str]
    tasks: list[str]
    letters: list[str]
    said: list[str]  # by log-probability
    options: list[int]  # how many
    logprob_N: np.ndarray
    generation_N: np.ndarray
    read_N: np.ndarray  # whether a letter could be read


def answers(trial: Trial, base: Trial | None = None, data: str = "") -> Answers:
    """From the samples of `kvfix eval`; of one dataset, where several were asked.

    Raises:
        FileNotFoundError: No samples.
        ValueError: Other questions than the base's, or in another order.
    """
    rows = _rows(trial, "mcq", AnswerRow, data)

    def column(of: Callable[[AnswerRow], Any]) -> np.ndarray:
        return np.array([float(of(r)) for r in rows])

    found = Answers(
        [r.id for r in rows],
        [r.subtask for r in rows],
        [r.answer for r in rows],
        [str(r.logprob_letter) for r in rows],
        [len(r.logprobs or ()) for r in rows],
        column(lambda r: r.logprob_correct),
        column(lambda r: r.correct),
        column(lambda r: not r.unparsed),
    )
    if base is not None and found.ids != answers(base, data=data).ids:
        raise ValueError(f"{trial.folder}: expected the questions of {base.folder}, found others")
    return found


def readouts(trial: Trial, base: Trial, data: str = "") -> dict[str, np.ndarray]:
    """Kind -> (3, N / 2): is the base's readout right, is the trial's, is the trial's answer.

    Both read the layer at which the base reads that kind best; it is chosen on the odd questions,
    and the figures are of the even ones. Kinds without a readout are left out.
    """
    mine, bases = _readings(trial, data), _readings(base, data)
    right = {}
    for task, readings in bases.items():
        correct_NS = readings.choice_NS == readings.answer_N[:, None]
        layer = int(correct_NS[1::2].mean(0).argmax())
        now = mine[task]
        now_N = now.choice_NS[:, layer] == now.answer_N
        right[task] = np.stack([correct_NS[:, layer], now_N, now.answered_N])[:, ::2]
    return right


def _readings(trial: Trial, data: str) -> dict[str, Any]:
    said = _rows(trial, "mcq", AnswerRow, data)
    read = _rows(trial, "readout", ReadoutRow, data, needed=False)
    found = {}
    for task in READOUTS:
        features = [r for r in read if r.subtask == task]
        if features:
            found[task] = align(features, [r for r in said if r.subtask == task], "logprob")[0]
    return found


def _rows(trial: Trial, kind: str, of: type[R], data: str, *, needed: bool = True) -> list[R]:
    """Samples of a dataset: `mcq.jsonl` is of scenes, `mcq.blink.jsonl` of BLINK."""
    folder = trial.folder / "mcq" / "samples"
    scenes, others = f"{kind}.jsonl", f"{kind}.*.jsonl"
    names = {"": [scenes, others], "scenes": [scenes]}.get(data, [f"{kind}.{data}.jsonl"])
    files = [file for name in names for file in sorted(folder.glob(name))]
    if needed and not files:
        raise FileNotFoundError(
            f"{folder}: expected {kind}.jsonl or {kind}.<data>.jsonl, found none"
        )
    return [row for file in files for row in Rows(file, of)]


def probe_tasks(trial: Trial) -> list[str]:
    """Probes of the values."""
    return list(dict.fromkeys(r["task"] for r in _probes(trial)))


def probe_mean(trial: Trial, task: str) -> float:
    """A probe's own metric, mean over value layers: no layer is chosen, no arm gains by choice."""
    metric = TASKS[task].metric
    found = [r["value"] for r in _probes(trial) if r["task"] == task and r["metric"] == metric]
    return float(np.mean(found))


def _probes(trial: Trial) -> list[dict[str, Any]]:
    results = read_json(trial.folder / "probes" / "run.json")["results"]
    return [r for r in results if r["site"] == "value" and r["task"] in TASKS]
