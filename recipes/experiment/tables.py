"""The tables of RESULTS.md from what `run.py` left on disk; same options.

    python recipes/experiment/tables.py

Shapes: N questions, S seeds.

Differences are paired by question. Their intervals resample questions inside each kind, the same
questions for all seeds; the spread over seeds stands beside.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run import BASE, Grid, Trial, best_rate, finished, read_grid, scene_mix, searched
from samples import Answers, answers, probe_mean, probe_tasks, readouts
from without_model import RULES, is_blink, without_model

from kvfix.checkpoint.folder import read_json
from kvfix.data.training.mix import SceneMix
from kvfix.eval.stats.paired import stratified_paired_bootstrap

Arms = dict[str, list[Trial]]

RESAMPLES = 10_000
# Kinds of scene questions whose options are letters drawn on the image: no nano of the first
# generation can read those (benchmarks/letters.py), so there no answer follows what values know.
LETTERED = (
    "Object_Localization",
    "Relative_Depth",
    "Semantic_Correspondence",
    "Visual_Correspondence",
)


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


def search_table(grid: Grid) -> Iterator[str]:
    """Macro accuracy on val scenes of each learning rate; the tests take the best."""
    yield row(["arm", *(f"val at {rate:g}" for rate in grid.rates), "taken"])
    yield row(["---"] + ["---:"] * (len(grid.rates) + 1))
    for arm in grid.arms:
        tried = searched(arm, grid)
        if tried:
            yield row([arm, *map(percent, tried.values()), f"{best_rate(arm, grid):g}"])


def accuracy_table(arms: Arms, *, mix: SceneMix | None, data: str = "") -> Iterator[str]:
    """Macro accuracy of every arm and its difference from the base and from plain LoRA.

    Without `mix`, nothing says which kinds were trained.
    """
    first = arms[BASE][0]
    base = answers(first, data=data)
    kinds = list(dict.fromkeys(base.tasks))
    groups = {}
    if mix:
        groups["held-out kinds"] = [task for task in kinds if task in mix.held_out]
        groups["kinds without drawn letters"] = [task for task in kinds if task not in LETTERED]
    # Name -> the arm that it is, answers by seed.
    others = {"base": (BASE, base.logprob_N[None])}
    others["plain LoRA"] = ("lora", logprobs(arms.get("lora", []), first, data))
    if "format" in arms:  # what the form of an answer alone brings
        others["format"] = ("format", logprobs(arms["format"], first, data))
    columns = ["arm", "seeds", "macro, log-prob", "over seeds"]
    columns += [f"beyond {name}" for name in others]
    columns += ["letters balanced", "one letter", "macro, written", "unread"]
    columns += [f"{name}, log-prob, beyond base" for name in groups]
    yield row(columns)
    yield row(["---"] + ["---:"] * (len(columns) - 1))
    chance = macro(1 / np.array(base.options), base.tasks, kinds)
    yield row(["chance", "", percent(chance), *[""] * (len(columns) - 3)])
    for arm, of in arms.items():
        mine = [answers(trial, first, data) for trial in of]
        right_SN = logprobs(of, first, data)
        each = [macro(x_N, base.tasks, kinds) for x_N in right_SN]
        cells = [arm, str(len(of)), percent(np.mean(each))]
        cells.append("" if len(each) < 2 else f"{percent(min(each))}-{percent(max(each))}")
        for other, other_SN in others.values():
            if arm in (BASE, other) or not len(other_SN):
                cells.append("")
            else:
                change = difference(other_SN.mean(0), right_SN, base.tasks, kinds)
                cells.append(points(change))
        cells.append(percent(np.mean([balanced(a.logprob_N, a) for a in mine])))
        cells.append(percent(np.mean([one_letter(a) for a in mine])))
        cells.append(percent(np.mean([macro(a.generation_N, base.tasks, kinds) for a in mine])))
        cells.append(percent(np.mean([1 - a.read_N.mean() for a in mine])))
        for among in groups.values():
            cell = percent(np.mean([macro(x_N, base.tasks, among) for x_N in right_SN]))
            if arm != BASE:
                gain = difference(base.logprob_N, right_SN, base.tasks, among)
                cell += f", {points(gain)}"
            cells.append(cell)
        yield row(cells)


def logprobs(trials: Sequence[Trial], base: Trial, data: str = "") -> np.ndarray:
    """(S, N) which questions are right by log-probability."""
    return np.array([answers(trial, base, data).logprob_N for trial in trials])


def kinds_table(arms: Arms, *, mix: SceneMix | None, data: str = "") -> Iterator[str]:
    """Accuracy by log-probability of every kind of question, mean over seeds."""
    first = arms[BASE][0]
    base = answers(first, data=data)
    held_out = mix.held_out if mix else ()
    yield row(["kind", "n", "chance", *arms])
    yield row(["---", "---:", "---:", *["---:"] * len(arms)])
    for task in dict.fromkeys(base.tasks):
        at = np.array([t == task for t in base.tasks])
        chance = np.mean(1 / np.array(base.options)[at])
        cells = [percent(logprobs(of, first, data)[:, at].mean()) for of in arms.values()]
        name = task.replace("_", " ") + (" (held out)" if task in held_out else "")
        yield row([name, str(at.sum()), percent(chance), *cells])


def surfacing_table(arms: Arms, *, data: str = "", **_: Any) -> Iterator[str]:
    """Unsurfaced shares, kind by kind: the base's readout right, the arm's answer wrong."""
    base = arms[BASE][0]
    kinds = [task.replace("_", " ") for task in readouts(base, base, data)]
    if not kinds:
        yield "No kind of question here has a readout."
        return
    columns = ["arm", "readout right, base", "readout right, arm"]
    columns += [*(f"unsurfaced, {kind}" for kind in kinds), "mean"]
    yield row(columns)
    yield row(["---"] + ["---:"] * (len(columns) - 1))
    for arm, of in arms.items():
        found = np.array(  # seeds, kinds, three shares
            [
                [
                    [was.mean(), now.mean(), (was * (1 - said)).mean()]
                    for was, now, said in readouts(trial, base, data).values()
                ]
                for trial in of
            ]
        ).mean(0)
        shares = (*found[:, :2].mean(0), *found[:, 2], found[:, 2].mean())
        yield row([arm, *map(percent, shares)])


def readouts_table(arms: Arms, *, data: str, folder: Path) -> Iterator[str]:
    """What rules without a model get right of every kind, beside the readouts of all arms.

    The readouts are those of the surfacing table, of fewer questions than the rules'.
    """
    base = arms[BASE][0]
    read = {arm: [readouts(trial, base, data) for trial in of] for arm, of in arms.items()}
    columns = ["kind", "n", "chance", *RULES, "n of readouts"]
    yield row([*columns, *(f"readout, {arm}" for arm in arms)])
    yield row(["---"] + ["---:"] * (len(columns) - 1 + len(arms)))
    for task, of in without_model(folder).items():
        cells = [task.replace("_", " "), str(of.n), percent(of.chance)]
        cells += [percent(of.right[rule]) if rule in of.right else "" for rule in RULES]
        has = task in read[BASE][0]
        cells.append(str(len(read[BASE][0][task][1])) if has else "")
        for trials in read.values():
            cells.append(percent(np.mean([t[task][1] for t in trials])) if has else "")
        yield row(cells)


def rest_table(arms: Arms) -> Iterator[str]:
    """What must not get worse, and the keys; mean over seeds."""
    tasks = probe_tasks(arms[BASE][0])
    columns = ["arm", "text loss", "talk loss", "agnostic keys, %", "r of the lowest 5 %"]
    columns += ["minutes"] + [task.replace("_", " ") for task in tasks]
    yield row(columns)
    yield row(["---"] + ["---:"] * (len(columns) - 1))
    first = read_json(arms[BASE][0].folder / "rest.json")["text_loss"]
    for arm, of in arms.items():
        rest = [read_json(trial.folder / "rest.json") for trial in of]
        text, talk, agnostic, tau, lowest = (
            float(np.mean([r[key] for r in rest]))
            for key in ("text_loss", "talk_loss", "agnostic", "tau", "r_lowest")
        )
        minutes = ""
        if arm != BASE:
            spent = [read_json(trial.folder / "training.json")["seconds"] for trial in of]
            minutes = f"{np.mean(spent) / 60:.1f}"
        cells = [arm, f"{text:.3f} ({100 * (text / first - 1):+.1f} %)", f"{talk:.3f}"]
        cells += [f"{percent(agnostic)} (r < {tau:.2g})", f"{lowest:.2g}", minutes]
        cells += [f"{np.mean([probe_mean(trial, task) for trial in of]):.3f}" for task in tasks]
        yield row(cells)


def grouped(trials: Sequence[Trial], family: str) -> Arms:
    """Trials of a family by arm, the base first."""
    out: Arms = {}
    for trial in trials:
        if trial.family == family:
            out.setdefault(trial.arm, []).append(trial)
    return out


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def percent(share: Any) -> str:
    """As tables print it."""
    return f"{_in_percent(share):.1f}"


def points(change: tuple[float, float, float]) -> str:
    """Difference and interval in points."""
    value, low, high = map(_in_percent, change)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _in_percent(share: Any) -> float:
    """A mean of 1/720s is often half a last digit: the order of its sum must not decide."""
    return round(100 * float(share), 9)


def main() -> None:
    """Print everything."""
    grid = read_grid()
    trials, mix = finished(grid), scene_mix(grid.recipe)
    if len(grid.rates) > 1:
        title = f"### Learning rates, {grid.families[0]}, seed {grid.seeds[0]}"
        print(title, "", *search_table(grid), sep="\n", end="\n\n")
    for family in grid.families:
        arms = grouped(trials, family)
        if BASE not in arms:
            print(f"{family}: the base has not been tested yet", file=sys.stderr)
            continue
        rates = {arm: f"{of[0].rate:g}" for arm, of in arms.items() if arm != BASE}
        print(f"### {family}\n\nLearning rates: {rates}\n")
        for spec in grid.asked or ("",):
            data, _, folder = spec.partition("=")
            if len(grid.asked) > 1:
                print(f"#### {spec}\n")
            for table in (accuracy_table, kinds_table, surfacing_table):
                print(
                    "\n".join(table(arms, mix=mix if data in ("", "scenes") else None, data=data)),
                    end="\n\n",
                )
            if folder and is_blink(Path(folder)):
                print("\n".join(readouts_table(arms, data=data, folder=Path(folder))), end="\n\n")
        print("\n".join(rest_table(arms)), end="\n\n")


if __name__ == "__main__":
    main()
