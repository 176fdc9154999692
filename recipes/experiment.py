"""The experiment behind recipes/RESULTS.md: five arms, equal data, steps and search, many seeds.

    python recipes/experiment.py                          # the whole grid, two processes
    python recipes/experiment.py families=[qwen2_5_vl] seeds=[0] jobs=1
    python recipes/experiment_tables.py                   # print the tables

Arms: the base as it is; LoRA on the model's own loss alone; with the value readout's losses; with
the suppression of keys; with both. Each arm tries every learning rate with the first seed and keeps
the best on val scenes, for every family; the others seeds take it. Two kinds of question are held
out of training entirely. Tests are on unseen scenes.

What is done stays: the same command goes on, and adds what is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.config import load_config

HERE = Path(__file__).parent
RUNS = HERE.parent / "checkpoints" / "experiment"
OFF = tuple(
    f"losses.{name}.weight=0"
    for name in ("evidence", "distil", "mask", "text_value", "correspondence")
)
SUPPRESS = (
    "losses.dependence={weight: 10.0, layers: [4, 5, 6, 7], floor: 0.1, decay: 0.9}",
    "losses.mass={weight: 1.0, layers: [4, 5, 6, 7], ceiling: 0.02}",
)
# Overrides of train_surfacing.yaml, whose own losses are the readout's.
ARMS: dict[str, tuple[str, ...]] = {
    "lora": (*OFF, "losses.kl.weight=0"),
    "readout": (),
    "suppression": (*OFF, *SUPPRESS),
    "both": SUPPRESS,
}
# What of the value readout does it: run by `arms=[without_distil,...]`, no part of the grid.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "without_distil": ("losses.distil.weight=0",),
    "without_evidence": ("losses.evidence.weight=0",),
    "without_both": ("losses.distil.weight=0", "losses.evidence.weight=0"),
}
BASE = "base"


@dataclass(frozen=True)
class Grid:
    """What is run."""

    families: tuple[str, ...] = ("llava_onevision", "qwen2_5_vl", "llava_next")
    first: str = "llava_onevision"  # the family with all seeds
    seeds: tuple[int, ...] = (0, 1, 2)  # other families take the first
    rates: tuple[float, ...] = (3e-3,)
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 600
    questions: int = 720  # of the test, all kinds evenly
    val: int = 270
    units: int = 48  # a probe
    jobs: int = 2


class Trial(NamedTuple):
    """One training, or the base."""

    family: str
    arm: str
    rate: float = 0.0
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where it lies."""
        name = self.arm if self.arm == BASE else f"{self.arm}-{self.rate:g}-{self.seed}"
        return RUNS / self.family / name

    @property
    def model(self) -> str:
        """The nano that it starts from."""
        return str(HERE.parent / "checkpoints" / "nano" / self.family)

    @property
    def adapter(self) -> list[str]:
        """For a command of kvfix."""
        return [] if self.arm == BASE else ["--adapter", str(self.folder)]


def train(trial: Trial, grid: Grid) -> None:
    """Unless it was trained before."""
    if trial.arm == BASE or (trial.folder / "training.json").exists():
        return
    options = (
        f"model={trial.model}",
        f"out={trial.folder}",
        f"steps={grid.steps}",
        f"seed={trial.seed}",
        f"rates.lm={trial.rate}",
        "threads=1",
        *(ARMS | ABLATIONS)[trial.arm],
    )
    _run(trial, "train", [sys.executable, str(HERE / "train_surfacing.py"), *options])


def validate(trial: Trial, grid: Grid) -> float:
    """Macro accuracy by log-probability on val scenes, the kinds that were trained."""
    file = trial.folder / "val.json"
    if not file.exists():
        _run(trial, "val", _measure(trial, "val", grid.val, file))
    return json.loads(file.read_text())["macro"]


def test(trial: Trial, grid: Grid) -> None:
    """Answers, readouts, probes and what else must not get worse, on unseen scenes."""
    kvfix = [str(Path(sys.executable).parent / "kvfix"), "eval", "--model", trial.model]
    kvfix += [*trial.adapter, "--dtype", "float32", "--site", "value"]
    mcq, probes, rest = (trial.folder / name for name in ("mcq", "probes", "rest.json"))
    if not _complete(mcq):
        asked = ["--task", "mcq", "--limit", str(grid.questions), "--out", str(mcq)]
        _run(trial, "mcq", [*kvfix, *asked])
    if not _complete(probes):
        tasks = [
            "foreground_segmentation",
            "semantic_segmentation",
            "referring_segmentation",
            "semantic_correspondence",
        ]
        asked = [word for task in tasks for word in ("--task", task)]
        _run(trial, "probes", [*kvfix, *asked, "--limit", str(grid.units), "--out", str(probes)])
    if not rest.exists():
        _run(trial, "rest", _measure(trial, "rest", 64, rest))


def _measure(trial: Trial, what: str, n: int, file: Path) -> list[str]:
    adapter = "" if trial.arm == BASE else str(trial.folder)
    script = str(HERE / "experiment_measures.py")
    return [sys.executable, script, what, trial.model, adapter, str(n), str(file)]


def _complete(folder: Path) -> bool:
    file = folder / "run.json"
    return file.exists() and json.loads(file.read_text()).get("complete", False)


def _run(trial: Trial, what: str, command: list[str]) -> None:
    trial.folder.mkdir(parents=True, exist_ok=True)
    with (trial.folder / f"{what}.txt").open("w") as said:
        done = subprocess.run(
            command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}, see {said.name}")
    print(f"{trial.family} {trial.arm} {trial.rate:g} seed {trial.seed}: {what}", flush=True)


def best_rate(family: str, arm: str, grid: Grid) -> float:
    """The learning rate that was best on val scenes with the first seed."""
    return max(grid.rates, key=lambda rate: validate(Trial(family, arm, rate, grid.seeds[0]), grid))


def search(family: str, arm: str, grid: Grid) -> None:
    """Every learning rate with the first seed, then the test of the best."""
    for rate in grid.rates:
        trial = Trial(family, arm, rate, grid.seeds[0])
        train(trial, grid)
        validate(trial, grid)
    test(Trial(family, arm, best_rate(family, arm, grid), grid.seeds[0]), grid)


def repeat(family: str, arm: str, seed: int, grid: Grid) -> None:
    """Another seed at the best learning rate."""
    trial = Trial(family, arm, best_rate(family, arm, grid), seed)
    train(trial, grid)
    validate(trial, grid)
    test(trial, grid)


def finished(grid: Grid) -> list[Trial]:
    """All trials whose test is on disk, the base first."""
    found = []
    for family in grid.families:
        found += [Trial(family, BASE)]
        for arm in grid.arms:
            if all(
                (Trial(family, arm, r, grid.seeds[0]).folder / "val.json").exists()
                for r in grid.rates
            ):
                rate = best_rate(family, arm, grid)
                found += [Trial(family, arm, rate, seed) for seed in grid.seeds]
    return [t for t in found if _complete(t.folder / "mcq") and (t.folder / "rest.json").exists()]


def main() -> None:
    """Run what is missing, the first family's search first."""
    grid = load_config(Grid, None, sys.argv[1:])
    families = sorted(grid.families, key=lambda name: name != grid.first)
    steps: list[list[Any]] = []
    for family in families:
        steps.append([lambda f=family: test(Trial(f, BASE), grid)])
        steps[-1] += [lambda f=family, a=arm: search(f, a, grid) for arm in grid.arms]
        if family == grid.first:
            later = [(arm, seed) for seed in grid.seeds[1:] for arm in grid.arms]
            steps.append([lambda f=family, a=a, s=s: repeat(f, a, s, grid) for a, s in later])
    with ThreadPoolExecutor(grid.jobs) as pool:
        for together in steps:
            for job in [pool.submit(one) for one in together]:
                job.result()


if __name__ == "__main__":
    main()
