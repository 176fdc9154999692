"""Faults on one of two ranks, at every ZeRO stage: all ranks stop together, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
from places import ROOT
from safetensors.torch import load_file
from talks import write_talks
from trainings import names, record

from kvfix.config import load_config
from kvfix.recipes.train_surfacing import train
from kvfix.repair.train.recipe import Recipe

pytestmark = pytest.mark.slow

STAGES = ("0", "2", "3")
STEPS = 6


class Faults(NamedTuple):
    """What all jobs left behind."""

    folder: Path
    setups: dict[str, list[str]]

    def codes(self, name: str) -> list[int]:
        """Exit codes of both ranks."""
        return json.loads((self.folder / f"{name}.codes").read_text())

    def log(self, name: str) -> str:
        """What both ranks printed."""
        return (self.folder / f"{name}.log").read_text()

    def ended(self, name: str) -> list[str]:
        """The error lines of both ranks."""
        return [line for line in self.log(name).splitlines() if line.startswith("ValueError")]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """At each stage an undisturbed run, and one that goes on after each of its faults."""
    folder = tmp_path_factory.mktemp("faults")
    model = tiny.build("llava_wide", folder / "model")
    data = write_talks(folder / "data", 16)
    # The preset, but nothing so small that it stays on every rank.
    zero3 = json.loads((ROOT / "recipes" / "deepspeed" / "zero3.json").read_text())
    zero3["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "3.json").write_text(json.dumps(zero3))
    jobs: list[dict[str, Any]] = []
    setups = {}

    def add(name: str, setup: list[str], run_: str, fault: list[Any] | None = None, **more: Any):
        job: dict[str, Any] = {"name": name, "ranks": 2, "overrides": [*setup, f"out={run_}"]}
        if fault is not None:
            job["fault"] = dict(zip(("rank", "step", "do"), fault, strict=True))
        jobs.append(job | more)

    for zero in STAGES:
        stage = str(folder / "3.json") if zero == "3" else zero
        setup = [f"model={model}", f"data={data}", f"zero={stage}", f"steps={STEPS}", "batch=2"]
        setup += ["save_every=2", "keep=9", "log_every=1", "threads=1", "warmup=1", "lora.rank=4"]
        setup += ["lora.dropout=0.1", "losses.kl={weight: 0.1}", "verify=false", "rates.lm=2e-3"]
        setups[zero] = setup
        out, on = str(folder / f"run_{zero}"), [*setup, "resume=true"]
        add(f"whole_{zero}", setup, str(folder / f"whole_{zero}"))
        if zero == "2":
            add("dead_2", setup, out, [1, 3, "kill"], linger=True)
            add("term_2", on, out, [1, 3, "term"], linger=True)
        again = on if zero == "2" else setup
        add(f"nan_{zero}", again, out, [1, 5, "nan"], linger=True)
        add(f"saving_{zero}", on, out, [int(zero == "2"), 6, "save"])
        add(f"resumed_{zero}", on, out)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = [
        sys.executable,
        str(ROOT / "tests/helpers/ranks.py"),
        str(folder / "jobs.json"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return Faults(folder, setups)


@pytest.mark.parametrize("zero", STAGES)
def test_a_loss_that_is_nan_on_one_rank_stops_both_with_the_same_words(zero, faults) -> None:
    name = f"nan_{zero}"
    assert faults.codes(name) == [1, 1], faults.log(name)[-3000:]
    said = faults.ended(name)
    assert len(said) == 2 and said[0] == said[1]
    assert "step 5: expected finite numbers, found NaN or infinity in the loss `lm`" in said[0]
    assert f"the last good checkpoint is {faults.folder}/run_{zero}/checkpoint-4 (" in said[0]


@pytest.mark.parametrize("zero", STAGES)
def test_a_rank_killed_while_it_saves_leaves_no_checkpoint_of_that_step(zero, faults) -> None:
    codes = faults.codes(f"saving_{zero}")
    assert codes[int(zero == "2")] == -9
    log = faults.log(f"resumed_{zero}")
    assert faults.codes(f"resumed_{zero}") == [0, 0], log[-3000:]
    assert f"going on after step 4, from {faults.folder}/run_{zero}/checkpoint-4" in log


@pytest.mark.parametrize("zero", STAGES)
def test_after_all_faults_the_adapter_is_that_of_an_undisturbed_run(zero, faults) -> None:
    assert faults.codes(f"whole_{zero}") == [0, 0], faults.log(f"whole_{zero}")[-3000:]
    out, whole = (faults.folder / f"{name}_{zero}" for name in ("run", "whole"))
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (out, whole))
    assert ours.keys() == theirs.keys() and any(t.any() for t in theirs.values())
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-6, name
    assert names(out) == names(whole) == [f"checkpoint-{n}" for n in (2, 4, 6)]
    ended = [start["ended"] for start in record(out)["starts"]]
    assert ended[-1] == "finished" and len(ended) == (5 if zero == "2" else 3)


def test_when_one_rank_dies_the_other_ends_and_says_what_is_kept(faults) -> None:
    codes = faults.codes("dead_2")
    assert codes[1] == -9 and codes[0] == 1, faults.log("dead_2")[-3000:]
    [said] = faults.ended("dead_2")
    assert "after step 3: another rank ended (" in said
    assert f"the last checkpoint is {faults.folder}/run_2/checkpoint-2; go on with: " in said


def test_a_signal_to_one_rank_stops_both_after_the_same_step(faults) -> None:
    assert faults.codes("term_2") == [143, 143], faults.log("term_2")[-3000:]
    kept = faults.folder / "run_2" / "checkpoint-4"
    assert f"stopped after step 4 of {STEPS}; {kept} holds it" in faults.log("term_2")


def test_other_ranks_and_another_stage_are_refused_in_words(faults, monkeypatch) -> None:
    def refused(zero: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = [*faults.setups["2"], f"zero={zero}", "resume=true", "steps=9"]
        recipe = load_config(Recipe, None, [*words, f"out={faults.folder / 'run_2'}"])
        with pytest.raises(ValueError) as caught:
            train(recipe, command=["test"])
        return str(caught.value)

    assert "ranks: then 2, now 1" in refused("2")
    found = refused("0", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    assert "zero: then '2', now '0'" in found
