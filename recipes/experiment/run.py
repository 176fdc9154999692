"""The experiment behind RESULTS.md: five arms, equal data, steps and search, many seeds.

    python recipes/experiment/run.py                      # the whole grid, two processes
    python recipes/experiment/run.py families=[qwen2_5_vl] seeds=[0] jobs=1
    python recipes/experiment/run.py --grid recipes/experiment/nano.yaml models=DIR
    python recipes/experiment/tables.py                   # print the tables, of the same options

Arms: the base as it is; LoRA on the model's own loss alone; with the value readout's losses; with
the suppression of keys; with both. Where several learning rates are given, each arm tries them all
in the first family with the first seed and keeps the best on val scenes; the other seeds and
families take it. Two kinds of question are held out of training entirely. Tests are on unseen
scenes.

A model and photos of your own, in place of the nanos and the scenes:

    python recipes/experiment/run.py families=[pico] own=PICO config=train_surfacing_pico.yaml \
        data=train.jsonl asked=[blink=DIR] probed=[refcoco=DIR] arms=[format,lora,readout] \
        rates=[1e-3] seeds=[0] steps=60 late=[16,20,24,28]
    python recipes/experiment/run.py --grid recipes/experiment/pico.yaml own=PICO data=train.jsonl \
        asked=[blink=DIR]

Its arm `format` learns to write an option's letter from questions without an image, and no more.
With `mix`, kinds of question come in these shares, and a part of the data that shares no file with
the rest is kept for the choice of learning rates.

What is done stays: the same command goes on, and adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from answer_form import format_lines
from mixture import is_choice, mixed, parts, read_records, write_records

from kvfix.checkpoint.folder import read_json
from kvfix.config import load_config
from kvfix.data.training.mix import SceneMix
from kvfix.repair.lora import PARTS
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train import resume
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.saves import newest_whole

HERE = Path(__file__).parent
RECIPES = HERE.parent
RUNS = RECIPES.parent / "checkpoints" / "experiment"
KL = "losses.kl.weight=0"
OFF = tuple(f"losses.{f.name}.weight=0" for f in fields(Losses) if f.name != "kl")
PLAIN = (*OFF, KL)
SUPPRESS = (
    *("losses.dependence.weight=0.3", "losses.dependence.floor=0.1"),
    *("losses.mass.weight=1.0", "losses.mass.ceiling=0.02"),
)
# Overrides of train_surfacing.yaml, whose own losses are the readout's.
ARMS: dict[str, tuple[str, ...]] = {
    "lora": PLAIN,
    "readout": (),
    "suppression": (*OFF, *SUPPRESS),
    "both": SUPPRESS,
}
# Run by `arms=[without_distil,...]`, no part of the grid: which term of the value readout does the
# work, LoRA in the vision tower and projector too, and the form of an answer alone.
MORE_ARMS: dict[str, tuple[str, ...]] = {
    "without_distil": ("losses.distil.weight=0",),
    "without_evidence": ("losses.evidence.weight=0",),
    "without_both": ("losses.distil.weight=0", "losses.evidence.weight=0"),
    "all_parts": ("lora.parts=[lm, projector, vision]",),
    "format": PLAIN,
}
BASE = "base"
LINES = 2000  # of the arm `format`
PROBES = (
    "foreground_segmentation",
    "semantic_segmentation",
    "referring_segmentation",
    "semantic_correspondence",
)


@dataclass(frozen=True)
class Grid:
    """What is run."""

    families: tuple[str, ...] = ("llava_onevision", "qwen2_5_vl", "llava_next")
    models: str = ""  # folder of the families' models; empty: the shipped nanos
    seeds: tuple[int, ...] = (0, 1, 2)  # all for the first family
    seeds_of_others: int = 1  # the first of them, for the other families
    rates: tuple[float, ...] = (1e-3, 3e-3)
    arms: tuple[str, ...] = tuple(ARMS)
    steps: int = 600
    search_steps: int = 0  # of a training that only tries a learning rate; 0: all of them
    questions: int = 720  # of the test, all kinds evenly
    val: int = 270
    units: int = 48  # a probe
    late: tuple[int, ...] = (4, 5, 6, 7)  # layers whose keys are suppressed
    jobs: int = 2
    # A model of your own, its training data, and its tests as `kvfix eval --data` takes them.
    own: str = ""
    config: str = "train_surfacing.yaml"
    data: str = "scenes"
    mix: dict[str, int] = field(default_factory=dict)  # shares of its kinds; empty: as it is
    asked: tuple[str, ...] = ()
    probed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        unknown = [arm for arm in self.arms if arm not in ARMS | MORE_ARMS]
        if unknown or self.jobs < 1:
            raise ValueError(
                f"expected arms out of {', '.join(ARMS | MORE_ARMS)} and at least one job, found "
                f"{list(self.arms)} and {self.jobs}"
            )
        if self.own and (len(self.families) > 1 or (len(self.rates) > 1 and not self.mix)):
            raise ValueError(
                "expected one name in families and one learning rate beside own= (or mix=, which "
                f"keeps a part of the data to search on), found {list(self.families)} and "
                f"{list(self.rates)}"
            )

    def model(self, family: str) -> str:
        """What its trials start from."""
        models = self.models or str(RECIPES.parent / "checkpoints" / "nano")
        return self.own or f"{models}/{family}"

    @property
    def recipe(self) -> Path:
        """What the trials are trained by."""
        return Path(self.config) if Path(self.config).exists() else RECIPES / self.config

    @property
    def dtype(self) -> str:
        """Of tests; the nanos are trained in float32, too."""
        return "auto" if self.own else "float32"

    def settings(self) -> dict[str, Any]:
        """What all trials of a family must share to be compared."""
        apart = ("families", "seeds", "seeds_of_others", "rates", "arms", "jobs")
        return {name: value for name, value in asdict(self).items() if name not in apart}


class Trial(NamedTuple):
    """One training, or the base."""

    family: str
    arm: str
    rate: float = 0.0
    seed: int = 0
    steps: int = 0  # 0: the grid's

    @property
    def folder(self) -> Path:
        """Where it lies."""
        name = self.arm if self.arm == BASE else f"{self.arm}-{self.rate:g}-{self.seed}"
        return RUNS / self.family / (f"{name}-{self.steps}" if self.steps else name)

    @property
    def adapter(self) -> list[str]:
        """For a command of kvfix."""
        return [] if self.arm == BASE else ["--adapter", str(self.folder)]


def scene_mix(recipe: Path = RECIPES / "train_surfacing.yaml") -> SceneMix:
    """What trials learn from; the kinds of question that it holds out are only tested."""
    return load_config(Recipe, recipe).scenes


def check_settings(family: str, grid: Grid) -> None:
    """Refuse to mix trials that were made by other settings.

    Raises:
        ValueError: The family's folder holds such trials.
    """
    file = RUNS / family / "settings.json"
    mine = json.loads(json.dumps(grid.settings()))
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(mine, indent=1) + "\n")
    there = Grid().settings() | read_json(file)  # which may be older than a setting
    other = [name for name in mine if mine[name] != json.loads(json.dumps(there[name]))]
    if other:
        raise ValueError(
            f"{file}: expected the settings of this run, found others in {', '.join(other)}; give "
            "the family another name, or remove its folder"
        )


def train(trial: Trial, grid: Grid) -> None:
    """Unless it was trained before; one that was cut short goes on from its last checkpoint."""
    if trial.arm == BASE or resume.finished(trial.folder):
        return
    begun = newest_whole(trial.folder).last is not None
    if trial.folder.exists() and not begun:
        shutil.rmtree(trial.folder)
    options = (
        f"model={grid.model(trial.family)}",
        f"data={_data(trial, grid)}",
        f"out={trial.folder}",
        f"steps={trial.steps or grid.steps}",
        f"seed={trial.seed}",
        *(f"rates.{part}={trial.rate}" for part in PARTS),
        *(ARMS | MORE_ARMS)[trial.arm],
        *(f"losses.{term}.layers={list(grid.late)}" for term in ("dependence", "mass")),
        *(["resume=true"] if begun else []),
    )
    recipe = [str(RECIPES / "train_surfacing.py"), "--config", str(grid.recipe)]
    _run(trial, "train", [sys.executable, *recipe, *options])


def prepare(family: str, grid: Grid) -> None:
    """Write the data that is made and not given, once."""
    folder = RUNS / family
    folder.mkdir(parents=True, exist_ok=True)
    if "format" in grid.arms and not (folder / "format.jsonl").exists():
        write_records(folder / "format.jsonl", format_lines(LINES))
    if grid.mix and not (folder / "val.jsonl").exists():
        if not Path(grid.data).is_file():
            raise ValueError(f"expected a file as data= beside mix=, found {grid.data!r}")
        train, val = parts(read_records(Path(grid.data)))
        write_records(folder / "train.jsonl", mixed(train, grid.mix))
        asked = [r for r in val if r["sub_task"] in grid.mix and is_choice(r)]
        write_records(folder / "val.jsonl", asked)


def _data(trial: Trial, grid: Grid) -> str:
    folder = trial.folder.parent
    if trial.arm == "format":
        return str(folder / "format.jsonl")
    return str(folder / "train.jsonl") if grid.mix else grid.data


def validate(trial: Trial, grid: Grid) -> float:
    """Macro accuracy by log-probability of the kinds that were trained, on val scenes or what is
    kept of the data.
    """
    file = trial.folder / "val.json"
    if not file.exists():
        _run(trial, "val", _measure(trial, grid, "val", grid.val, file))
    return read_json(file)["macro"]


def test(trial: Trial, grid: Grid) -> None:
    """Answers, readouts, probes and what else must not get worse, on unseen scenes."""
    kvfix = [str(Path(sys.executable).parent / "kvfix"), "eval", *trial.adapter]
    kvfix += ["--model", grid.model(trial.family), "--site", "value", "--dtype", grid.dtype]
    mcq, probes, rest = (trial.folder / name for name in ("mcq", "probes", "rest.json"))
    if not _complete(mcq):
        asked = ["--task", "mcq", *_from(grid.asked), "--limit", str(grid.questions)]
        _run(trial, "mcq", [*kvfix, *asked, "--out", str(mcq)])
    if not _complete(probes):
        asked = _from(grid.probed) or [word for task in PROBES for word in ("--task", task)]
        _run(trial, "probes", [*kvfix, *asked, "--limit", str(grid.units), "--out", str(probes)])
    if not rest.exists():
        _run(trial, "rest", _measure(trial, grid, "rest", 64, rest))


def _from(data: Sequence[str]) -> list[str]:
    return [word for spec in data for word in ("--data", spec)]


def _measure(trial: Trial, grid: Grid, what: str, n: int, file: Path) -> list[str]:
    adapter = "" if trial.arm == BASE else str(trial.folder)
    script = str(HERE / "measures.py")
    model = grid.model(trial.family), adapter, grid.dtype, str(grid.recipe)
    kept = [str(RUNS / trial.family / "val.jsonl")] if grid.mix and what == "val" else []
    return [sys.executable, script, what, *model, str(n), str(file), *kept]


def _complete(folder: Path) -> bool:
    file = folder / "run.json"
    return file.exists() and read_json(file).get("complete", False)


def _run(trial: Trial, what: str, command: list[str]) -> None:
    """What the command says goes beside the trial's folder: a training wants its own for itself."""
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    with trial.folder.with_name(f"{trial.folder.name}.{what}.txt").open("w") as said:
        done = subprocess.run(command, stdout=said, stderr=said)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}, see {said.name}")
    print(f"{trial.family} {trial.arm} {trial.rate:g} seed {trial.seed}: {what}", flush=True)


def best_rate(arm: str, grid: Grid) -> float:
    """The learning rate that was best on val scenes, first family and seed."""
    if len(grid.rates) == 1:
        return grid.rates[0]
    return max(grid.rates, key=lambda rate: validate(_tried(arm, rate, grid), grid))


def searched(arm: str, grid: Grid) -> dict[float, float]:
    """Accuracy on val scenes by learning rate; empty while one is missing."""
    files = {rate: _tried(arm, rate, grid).folder / "val.json" for rate in grid.rates}
    if not all(file.exists() for file in files.values()):
        return {}
    return {rate: read_json(file)["macro"] for rate, file in files.items()}


def _tried(arm: str, rate: float, grid: Grid) -> Trial:
    return Trial(grid.families[0], arm, rate, grid.seeds[0], grid.search_steps)


def search(arm: str, grid: Grid) -> None:
    """Every learning rate in the first family with the first seed, then the test of the best."""
    if len(grid.rates) > 1:
        for rate in grid.rates:
            train(_tried(arm, rate, grid), grid)
    repeat(grid.families[0], arm, grid.seeds[0], grid)


def repeat(family: str, arm: str, seed: int, grid: Grid) -> None:
    """A seed and family at the best learning rate."""
    trial = Trial(family, arm, best_rate(arm, grid), seed)
    train(trial, grid)
    test(trial, grid)


def finished(grid: Grid) -> list[Trial]:
    """All trials whose test is on disk, the base first."""
    found = []
    for family in grid.families:
        found += [Trial(family, BASE)]
        for arm in grid.arms:
            if len(grid.rates) == 1 or searched(arm, grid):
                rate = best_rate(arm, grid)
                found += [Trial(family, arm, rate, seed) for seed in grid.seeds]
    return [t for t in found if _complete(t.folder / "mcq") and (t.folder / "rest.json").exists()]


def read_grid() -> Grid:
    """What the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grid", help="YAML file of settings; the grid of the nanos by default")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    asked = parser.parse_args()
    return load_config(Grid, asked.grid, asked.overrides)


def main() -> None:
    """Run what is missing, the first family's search first."""
    grid = read_grid()
    # Torch takes all cores otherwise, and processes that share them stand in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // grid.jobs)))
    first, *others = grid.families
    for family in grid.families:
        check_settings(family, grid)
        prepare(family, grid)
    together: list[list[Any]] = [
        [lambda f=family: test(Trial(f, BASE), grid) for family in grid.families],
        [lambda a=arm: search(a, grid) for arm in grid.arms],
        [
            lambda f=family, a=arm, s=seed: repeat(f, a, s, grid)
            for family, seed in [
                *((first, seed) for seed in grid.seeds[1:]),
                *((f, seed) for f in others for seed in grid.seeds[: grid.seeds_of_others]),
            ]
            for arm in grid.arms
        ],
    ]
    with ThreadPoolExecutor(grid.jobs) as pool:
        for jobs in together:
            for job in [pool.submit(one) for one in jobs]:
                job.result()


if __name__ == "__main__":
    main()
