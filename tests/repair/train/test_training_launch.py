"""Real trainings of tiny models on one and two ranks: stages, quantisation, kills, adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from peft import PeftModel
from places import ROOT
from safetensors.torch import load_file
from talks import write_talks

from kvfix.launchers import free_port
from kvfix.mlm.load import Prompt, load_mlm
from kvfix.repair.lora import merge

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
STEPS, KILLED, SAVED = 20, 8, 5
SURFACING = [
    *("log_every=1", "threads=1", "warmup=3", "rates.lm=2e-3", "rates.heads=5e-3", "lora.rank=4"),
    "losses.mask={weight: 0.5, layers: [0, 1]}",
    "losses.text_value={weight: 0.2, layers: [1]}",
    "losses.correspondence={weight: 0.2, layers: [1]}",
    "losses.distil={weight: 0.5, layer: 1}",
    "losses.kl={weight: 0.1, every: 4}",
    "losses.gram={weight: 1.0, layers: [1], every: 3}",
]
ARTIFACTS = [
    *("log_every=1", "threads=1", "warmup=3", "rates.lm=2e-3", "lora.rank=4", "keys.lowest=0.2"),
    "losses.dependence={weight: 1.0, layers: [0, 1], floor: 1.0}",
    "losses.mass={weight: 1.0, layers: [0, 1], ceiling: 0.0}",
]
STAGES = ("0", "2", "3")
TWO = [(quant, zero) for quant in ("", "nf4") for zero in STAGES]


def two_ranks(quant: str, zero: str) -> str:
    """Name of a job."""
    return f"two_{quant or 'whole'}_{zero}"


class Trained(NamedTuple):
    """What all jobs left behind."""

    folder: Path
    models: dict[str, Path]

    def out(self, name: str) -> Path:
        """Run folder of a job that ended well."""
        code, log = (self.folder / f"{name}.{suffix}" for suffix in ("code", "log"))
        assert code.read_text() == "0", log.read_text()[-3000:]
        return self.folder / "runs" / name

    def log(self, name: str) -> dict[int, dict[str, float]]:
        """Losses by step."""
        lines = (self.out(name) / "log.jsonl").read_text().splitlines()
        steps = [line for line in map(json.loads, lines) if "loss" in line]
        found = {s["step"]: {k: v for k, v in s.items() if k.startswith("loss")} for s in steps}
        assert list(found) == list(range(1, len(steps) + 1)), "a step twice, or none"
        return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All jobs, one after the other."""
    folder = tmp_path_factory.mktemp("launches")
    models = {n: tiny.build(n, folder / n) for n in ("llava_wide", "llava_onevision")}
    # With an example for each of two labels a third line these are 24: whole batches of 4. The last
    # batch of an epoch is smaller on one rank, and filled up from the epoch's start on two.
    data = write_talks(folder / "data", 16)
    many = write_talks(folder / "many", 64)  # keys are measured on 64 images
    # The preset, but nothing so small that it stays on every rank.
    zero3 = json.loads((ROOT / "recipes" / "deepspeed" / "zero3.json").read_text())
    zero3["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "3").write_text(json.dumps(zero3))
    stages = {"0": "0", "2": "2", "3": str(folder / "3")}
    jobs: list[dict[str, Any]] = []

    def add(name: str, *overrides: object, ranks: int = 1, run: str = "", **more: Any) -> None:
        out = folder / "runs" / (run or name)
        job = {"name": name, "ranks": ranks, "overrides": [*map(str, overrides), f"out={out}"]}
        jobs.append(job | more)

    surfacing = [*SURFACING, f"model={models['llava_wide']}", f"data={data}", f"steps={STEPS}"]
    for quant in ("", "nf4"):
        add(f"one_{quant or 'whole'}", *surfacing, "batch=4", f"quant={quant}")
    for quant, zero in TWO:
        setup = [*surfacing, "batch=2", f"quant={quant}", f"zero={stages[zero]}"]
        add(two_ranks(quant, zero), *setup, ranks=2)
    for zero in ("", "2", "3"):
        setup = [*surfacing, f"save_every={SAVED}"]
        setup += ["batch=2", f"zero={stages[zero]}"] if zero else ["batch=4"]
        ranks, run = 1 + bool(zero), f"resumed_{zero}"
        add(f"killed_{zero}", *setup, ranks=ranks, run=run, kill_after=KILLED)
        add(run, *setup, "resume=true", ranks=ranks)
    tiled = [*SURFACING, f"model={models['llava_onevision']}", f"data={data}", "steps=6"]
    tiled += ["lora.parts=[lm, projector, vision]"]
    add("tiled_one", *tiled, "batch=4")
    split = ["batch=1", "accumulate=2", "checkpointing=true", f"zero={stages['3']}"]
    add("tiled_two", *tiled, *split, ranks=2)
    artifacts = [*ARTIFACTS, f"model={models['llava_wide']}", f"data={many}", "steps=10", "batch=2"]
    artifacts += [f"zero={stages['3']}"]
    add("artifacts", *artifacts, ranks=2)
    add("artifacts_stopped", *artifacts, "stop_at=4", ranks=2, run="artifacts_resumed")
    add("artifacts_resumed", *artifacts, "resume=true", ranks=2)

    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = [
        sys.executable,
        str(ROOT / "tests/helpers/ranks.py"),
        str(folder / "jobs.json"),
    ]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(folder, models)


def environment() -> dict[str, str]:
    """One thread a rank, tools of this environment, errors with their place."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"OMP_NUM_THREADS": "1", "KVFIX_DEBUG": "1", "PATH": path}


def assert_equal_losses(
    found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]], within: float
) -> None:
    """Every term of every step."""
    assert found.keys() == expected.keys()
    for step, terms in expected.items():
        assert found[step] == pytest.approx(terms, abs=within, rel=within), step


def logits(model: Any, mlm: Any) -> torch.Tensor:
    """Of two images and a text."""
    images = (tiny.photo(60, 100, seed=1), tiny.photo(60, 100, seed=2))
    with torch.no_grad():
        return model(**mlm.encode([Prompt(images, "The same?")]).inputs).logits


@pytest.fixture(scope="module")
def effect(trained: Trained) -> Callable[[str], torch.Tensor]:
    """Logits of the base with a job's adapter, as plain PEFT loads it."""

    def of(name: str) -> torch.Tensor:
        mlm = load_mlm(str(trained.models["llava_wide"]))
        return logits(PeftModel.from_pretrained(mlm.base, str(trained.out(name))).eval(), mlm)

    return of


@pytest.mark.parametrize(("quant", "zero"), TWO)
def test_two_ranks_agree_with_one_of_twice_the_batch(quant, zero, trained) -> None:
    one = trained.log(f"one_{quant or 'whole'}")
    assert len(one) == STEPS and one[STEPS]["loss"] < 0.9 * one[1]["loss"]
    terms = {name for step in one.values() for name in step}
    assert terms == {
        *("loss", "loss_lm", "loss_mask", "loss_text_value", "loss_correspondence"),
        *("loss_distil", "loss_kl", "loss_gram"),
    }
    assert_equal_losses(trained.log(two_ranks(quant, zero)), one, 1e-3)


def test_tiles_micro_batches_checkpointing_and_all_parts_agree_at_zero_3(trained) -> None:
    assert_equal_losses(trained.log("tiled_two"), trained.log("tiled_one"), 1e-3)
    modules = json.loads((trained.out("tiled_two") / "training.json").read_text())["modules"]
    assert modules.keys() == {"lm", "projector", "vision"} and all(modules.values())


@pytest.mark.parametrize(("zero", "whole"), [("", "one_whole"), ("2", ""), ("3", "")])
def test_a_killed_run_ends_as_an_undisturbed_one(zero, whole, trained) -> None:
    whole = whole or two_ranks("", zero)
    assert (trained.folder / f"killed_{zero}.code").read_text() == "-9"
    assert_equal_losses(trained.log(f"resumed_{zero}"), trained.log(whole), 1e-5)
    for file in ("adapter_model.safetensors", "kvfix_heads.safetensors"):
        found, expected = (
            load_file(trained.out(name) / file) for name in (f"resumed_{zero}", whole)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_stopped_artifact_run_ends_as_an_undisturbed_one(trained) -> None:
    whole, resumed = trained.out("artifacts"), trained.out("artifacts_resumed")
    assert_equal_losses(trained.log("artifacts_resumed"), trained.log("artifacts"), 1e-5)
    found, expected = (load_file(run / "adapter_model.safetensors") for run in (resumed, whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quant", ["", "nf4"])
def test_adapters_of_all_stages_have_one_effect(quant, trained, effect) -> None:
    mlm = load_mlm(str(trained.models["llava_wide"]))
    base = logits(mlm.model, mlm)
    expected = effect(f"one_{quant or 'whole'}")
    assert (expected - base).abs().max() > 0.1
    for zero in STAGES:
        saved = load_file(trained.out(two_ranks(quant, zero)) / "adapter_model.safetensors")
        assert all(tensor.numel() and tensor.any() for tensor in saved.values())
        found = effect(two_ranks(quant, zero))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_survives_loading_and_merging(trained, effect) -> None:
    out = trained.out(two_ranks("", "3"))
    mlm = load_mlm(str(trained.models["llava_wide"]), adapter=str(out))
    expected = effect(two_ranks("", "3"))
    torch.testing.assert_close(logits(mlm.model, mlm), expected, atol=1e-4, rtol=1e-4)
    merged = merge(mlm)
    assert not hasattr(merged.model, "peft_config")
    torch.testing.assert_close(logits(merged.model, merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("quant", "zero"), [*TWO, ("", ""), ("nf4", "")])
def test_frozen_weights_are_bit_identical(quant, zero, trained) -> None:
    name = two_ranks(quant, zero) if zero else f"one_{quant or 'whole'}"
    trained.out(name)
    digests = json.loads((trained.folder / f"{name}.frozen").read_text())
    assert digests["after"] == digests["before"]
    one = json.loads((trained.folder / f"one_{quant or 'whole'}.frozen").read_text())
    assert digests["before"] == one["before"] and len(one["before"]) > 50


def test_the_run_folder_says_what_was_done(trained) -> None:
    out = trained.out(two_ranks("", "2"))
    record = json.loads((out / "training.json").read_text())
    assert record["model"]["family"] == "llava" and len(record["model"]["sha256"]) == 64
    assert record["data"]["n"] == 24
    assert "zero=2" in record["command"] and record["versions"].keys() >= {"torch", "deepspeed"}
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card and "losses.gram" in card


def test_the_deepspeed_command_trains_the_shipped_nano(tmp_path: Path) -> None:
    """As the recipe's first line says it, with its own defaults."""
    port = free_port()  # else two on one machine meet at the same port
    words = [BIN / "deepspeed", "--num_accelerators", "2", "--master_port", port]
    words += [ROOT / "recipes" / "train_surfacing.py"]
    words += ["steps=2", "batch=2", "threads=1", "zero=2", "log_every=1", f"out={tmp_path / 'run'}"]
    done = subprocess.run(
        list(map(str, words)), env=environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]
    assert load_file(tmp_path / "run" / "adapter_model.safetensors")
