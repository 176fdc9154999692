"""The tables of recipes/RESULTS.md from what `experiment.py` left on disk; same options.

    python recipes/experiment_tables.py

Differences are paired by question. Their intervals resample questions inside each kind, the same
questions for all seeds; the spread over seeds stands beside.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from experiment import BASE, Grid, Trial, finished

from kvfix.config import load_config
from kvfix.data.examples import TRAINED
from kvfix.diagnose.surfacing import align
from kvfix.eval.paired import stratified_paired_bootstrap
from kvfix.eval.readouts import READOUTS
from kvfix.eval.samples import Rows

RESAMPLES = 10_000
# Kinds of scene questions whose options are letters drawn on the image: no nano can read those
# (benchmarks/letters.py), so here an answer cannot follow what the values know.
LETTERED = (
    "Object_Localization",
    "Relative_Depth",
    "Semantic_Correspondence",
    "Visual_Correspondence",
)


class Answers(NamedTuple):
    """Of one test: ids, kinds and right letters of its questions, and what was answered."""

    ids: list[str]
    tasks: list[str]
    letters: list[str]
    said: list[str]  # by log-probability
    logprob_N: np.ndarray
    generation_N: np.ndarray
    read_N: np.ndarray  # whether a letter could be read


def answers(trial: Trial) -> Answers:
    """From the samples of `kvfix eval`."""
    rows = list(Rows(trial.folder / "mcq" / "samples" / "mcq.jsonl", lambda r: "correct" in r))

    def column(of: Any) -> np.ndarray:
        return np.array([float(of(r)) for r in rows])

    return Answers(
        [r["id"] for r in rows],
        [r["task"] for r in rows],
        [r["answer"] for r in rows],
        [r["logprob_letter"] for r in rows],
        column(lambda r: r["logprob_correct"]),
        column(lambda r: r["correct"]),
        column(lambda r: not r["unparsed"]),
    )


def readouts(trial: Trial, base: Trial) -> dict[str, np.ndarray]:
    """Whether the readout of each question is right, at the layer best for the base's kind.

    The layer is chosen on the odd questions and the figures are of the even ones.
    """
    right: dict[str, np.ndarray] = {}
    mine = {}
    for which in (trial, base):
        file = which.folder / "mcq" / "samples"
        said = list(Rows(file / "mcq.jsonl", lambda r: "correct" in r))
        read = list(Rows(file / "readout.jsonl", lambda r: "score" in r))
        mine[which] = {
            task: align(
                [r for r in read if r["task"] == f"readout_{task}"],
                [r for r in said if r["task"] == task],
                "logprob",
            )[0]
            for task in READOUTS
            if any(r["task"] == f"readout_{task}" for r in read)
        }
    for task, readings in mine[base].items():
        correct_NS = readings.choice_NS == readings.answer_N[:, None]
        layer = int(correct_NS[1::2].mean(0).argmax())
        now = mine[trial][task]
        right[task] = np.stack(
            [
                correct_NS[::2, layer],
                (now.choice_NS == now.answer_N[:, None])[::2, layer],
                now.answered_N[::2],
            ]
        )
    return right


def macro(values_N: np.ndarray, tasks: Sequence[str], among: Sequence[str]) -> float:
    """Mean over kinds of the mean over questions."""
    at = np.array(tasks)
    return float(np.mean([values_N[at == task].mean() for task in among]))


def balanced(right_N: np.ndarray, of: Answers) -> float:
    """Mean over kinds of the mean over right letters: one letter for all scores as chance does."""
    kinds: dict[str, dict[str, list[float]]] = {}
    for task, letter, right in zip(of.tasks, of.letters, right_N, strict=True):
        kinds.setdefault(task, {}).setdefault(letter, []).append(float(right))
    return float(np.mean([np.mean([np.mean(x) for x in kind.values()]) for kind in kinds.values()]))


def one_letter(of: Answers) -> float:
    """Share of the letter that is said most often, mean over kinds."""
    at = np.array(of.tasks)
    said = np.array(of.said)
    counts = [
        np.unique(said[at == task], return_counts=True)[1] for task in dict.fromkeys(of.tasks)
    ]
    return float(np.mean([count.max() / count.sum() for count in counts]))


def difference(
    before_N: np.ndarray, after_SN: np.ndarray, tasks: Sequence[str], among: Sequence[str]
) -> tuple[float, float, float]:
    """Macro difference of the seeds' mean, and its 95 % interval over questions."""
    use = np.isin(tasks, among)
    kinds = [task for task, wanted in zip(tasks, use, strict=True) if wanted]
    got = stratified_paired_bootstrap(
        before_N[use],
        after_SN.mean(0)[use],
        kinds,
        list(range(len(kinds))),
        resamples=RESAMPLES,
        seed=0,
    ).macro
    return got.value, got.low, got.high


def accuracy_table(trials: Sequence[Trial], family: str) -> Iterator[str]:
    """Macro accuracy of every arm and its difference from the base and from plain LoRA."""
    arms = grouped(trials, family)
    base = answers(arms[BASE][0])
    kinds = list(dict.fromkeys(base.tasks))
    held_out = [task for task in kinds if task not in TRAINED]
    no_letters = [task for task in kinds if task not in LETTERED]
    plain = arms.get("lora")
    yield (
        "| arm | seeds | macro, log-prob | over seeds | beyond base | beyond plain LoRA "
        "| letters balanced | one letter | macro, written | unread | held-out kinds, log-prob "
        "| kinds without drawn letters, log-prob, beyond base |"
    )
    yield "|---|---:|---:|---|---|---|---:|---:|---:|---:|---:|---:|"
    for arm, of in arms.items():
        mine = [answers(trial) for trial in of]
        right_SN = np.stack([a.logprob_N for a in mine])
        each = [macro(x_N, base.tasks, kinds) for x_N in right_SN]
        cells = [arm, str(len(of)), percent(np.mean(each))]
        cells.append("" if len(each) < 2 else f"{percent(min(each))}-{percent(max(each))}")
        cells.append(
            "" if arm == BASE else points(difference(base.logprob_N, right_SN, base.tasks, kinds))
        )
        if arm in (BASE, "lora") or plain is None:
            cells.append("")
        else:
            other_N = np.stack([answers(t).logprob_N for t in plain]).mean(0)
            cells.append(points(difference(other_N, right_SN, base.tasks, kinds)))
        cells.append(percent(np.mean([balanced(a.logprob_N, a) for a in mine])))
        cells.append(percent(np.mean([one_letter(a) for a in mine])))
        cells.append(percent(np.mean([macro(a.generation_N, base.tasks, kinds) for a in mine])))
        cells.append(percent(np.mean([1 - a.read_N.mean() for a in mine])))
        for among in (held_out, no_letters):
            cells.append(percent(np.mean([macro(x_N, base.tasks, among) for x_N in right_SN])))
        if arm != BASE:
            gain = difference(base.logprob_N, right_SN, base.tasks, no_letters)
            cells[-1] += f", {points(gain)}"
        yield "| " + " | ".join(cells) + " |"


def kinds_table(trials: Sequence[Trial], family: str) -> Iterator[str]:
    """Accuracy by log-probability of every kind of question, mean over seeds."""
    arms = grouped(trials, family)
    base = answers(arms[BASE][0])
    yield "| kind | n | " + " | ".join(arms) + " |"
    yield "|---|---:|" + "---:|" * len(arms)
    for task in dict.fromkeys(base.tasks):
        at = np.array([t == task for t in base.tasks])
        cells = [
            percent(np.mean([answers(t).logprob_N[at].mean() for t in of])) for of in arms.values()
        ]
        name = task.replace("_", " ") + ("" if task in TRAINED else " (held out)")
        yield f"| {name} | {at.sum()} | " + " | ".join(cells) + " |"


def surfacing_table(trials: Sequence[Trial], family: str) -> Iterator[str]:
    """Unsurfaced shares, kind by kind: the base's readout right, the arm's answer wrong."""
    arms = grouped(trials, family)
    base = arms[BASE][0]
    kinds = [task.replace("_", " ") for task in readouts(base, base)]
    yield (
        "| arm | readout right, base | readout right, arm | "
        + " | ".join(f"unsurfaced, {kind}" for kind in kinds)
        + " | mean |"
    )
    yield "|---|---:|---:|" + "---:|" * (len(kinds) + 1)
    for arm, of in arms.items():
        found = np.array(  # seeds, kinds, three shares
            [
                [
                    [was.mean(), now.mean(), (was * (1 - said)).mean()]
                    for was, now, said in readouts(trial, base).values()
                ]
                for trial in of
            ]
        ).mean(0)
        shares = (*found[:, :2].mean(0), *found[:, 2], found[:, 2].mean())
        yield f"| {arm} | " + " | ".join(percent(x) for x in shares) + " |"


def rest_table(trials: Sequence[Trial], family: str) -> Iterator[str]:
    """What must not get worse, and the keys; mean over seeds."""
    arms = grouped(trials, family)
    tasks = _probe_tasks(arms[BASE][0])
    yield (
        "| arm | text loss | talk loss | agnostic keys | r of the lowest 5 % | minutes | "
        + " | ".join(task.replace("_", " ") for task in tasks)
        + " |"
    )
    yield "|---|---:|---:|---:|---:|---:|" + "---:|" * len(tasks)
    first = None
    for arm, of in arms.items():
        rest = [json.loads((t.folder / "rest.json").read_text()) for t in of]

        def mean(key: str, rest: list[dict[str, float]] = rest) -> float:
            return float(np.mean([r[key] for r in rest]))

        first = first or mean("text_loss")
        minutes = ""
        if arm != BASE:
            spent = [json.loads((t.folder / "training.json").read_text())["seconds"] for t in of]
            minutes = f"{np.mean(spent) / 60:.1f}"
        cells = [
            arm,
            f"{mean('text_loss'):.3f} ({100 * (mean('text_loss') / first - 1):+.1f} %)",
            f"{mean('talk_loss'):.3f}",
            percent(mean("agnostic")),
            f"{mean('r_lowest'):.3f}",
            minutes,
        ]
        cells += [f"{np.mean([_best_value(t, task) for t in of]):.3f}" for task in tasks]
        yield "| " + " | ".join(cells) + " |"


def _probe_tasks(base: Trial) -> list[str]:
    record = json.loads((base.folder / "probes" / "run.json").read_text())
    return list(dict.fromkeys(r["task"] for r in record["results"] if r["site"] == "value"))


def _best_value(trial: Trial, task: str) -> float:
    """Mean over value layers: no layer is chosen, so no arm gains by choice."""
    record = json.loads((trial.folder / "probes" / "run.json").read_text())
    found = [
        r["value"]
        for r in record["results"]
        if r["task"] == task and r["site"] == "value" and r["metric"] in ("IoU", "PCK@0.1")
    ]
    return float(np.mean(found))


def grouped(trials: Sequence[Trial], family: str) -> dict[str, list[Trial]]:
    """Trials of a family by arm, the base first."""
    out: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.family == family:
            out.setdefault(trial.arm, []).append(trial)
    return out


def percent(share: Any) -> str:
    """As tables print it."""
    return f"{100 * float(share):.1f}"


def points(change: tuple[float, float, float]) -> str:
    """Difference and interval in points."""
    value, low, high = (100 * x for x in change)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    """Print everything."""
    grid = load_config(Grid, None, sys.argv[1:])
    trials = finished(grid)
    for family in dict.fromkeys(trial.family for trial in trials):
        rates = {t.arm: f"{t.rate:g}" for t in trials if t.family == family and t.arm != BASE}
        print(f"### {family}\n\nLearning rates: {rates}\n")
        for table in (accuracy_table, kinds_table, surfacing_table, rest_table):
            print("\n".join(table(trials, family)), end="\n\n")


if __name__ == "__main__":
    main()
