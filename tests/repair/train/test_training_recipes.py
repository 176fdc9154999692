"""How a training is started, refused, logged, saved and resumed, in process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from places import ROOT
from safetensors.torch import load_file
from talks import write_talks

from kvfix.config import load_config
from kvfix.recipes import train_surfacing
from kvfix.repair.lora import LoraOptions, Rates
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train import launch as launching
from kvfix.repair.train.launch import plan_launch
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.show import Monitor

PRESETS = ROOT / "recipes" / "deepspeed"
READ = ("mask", "text_value", "correspondence", "distil", "kl", "gram")


def weighted(*names: str) -> Losses:
    """These terms, each of another weight."""
    losses = steps.only(*names)
    for number, name in enumerate(names):
        term = replace(getattr(losses, name), weight=0.5 + 0.25 * number)
        losses = replace(losses, **{name: term})
    return losses


# --- how it is started ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zero", "stage", "offload"),
    [
        ("0", 0, False),
        ("1", 1, False),
        ("2", 2, False),
        ("3", 3, False),
        ("2_offload", 2, False),
        ("3_offload", 3, True),
    ],
)
def test_every_preset_is_what_its_name_says(zero, stage, offload) -> None:
    found = plan_launch(zero, PRESETS, {})
    assert (found.stage, found.offload_params, found.world) == (stage, offload, 1)
    assert found.deepspeed is not None
    optimizer = found.deepspeed["zero_optimization"].get("offload_optimizer", {})
    assert (optimizer.get("device") == "cpu") == zero.endswith("_offload")
    assert {p.stem.removeprefix("zero") for p in PRESETS.glob("*.json")} >= {zero}


def test_a_launch_is_read_from_the_environment(tmp_path) -> None:
    assert plan_launch("", PRESETS, {}).deepspeed is None
    launched = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    found = plan_launch("", PRESETS, launched)
    assert (found.rank, found.world, found.stage) == (3, 4, 0) and found.deepspeed is not None
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    assert plan_launch(str(own), PRESETS, {}).stage == 2
    own.write_text("{")
    with pytest.raises(ValueError, match=r"own\.json: expected JSON, found"):
        plan_launch(str(own), PRESETS, {})
    with pytest.raises(FileNotFoundError, match=r"zero=4: expected one of 0, 1, 2, 2_offload, 3,"):
        plan_launch("4", PRESETS, {})


def test_a_machine_without_a_compiler_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launching.shutil, "which", lambda tool: None if tool == "g++" else tool)
    with pytest.raises(ValueError, match=r"^expected g\+\+ on this machine.*apt install g\+\+"):
        plan_launch("2", PRESETS, {})
    assert plan_launch("", PRESETS, {}).deepspeed is None  # not needed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan_launch("2", PRESETS, {"LOCAL_RANK": "1"})


# --- recipes --------------------------------------------------------------------------------------


def recipe(checkpoint: Any, data: Path, out: Path, **changed: Any) -> Recipe:
    """A few steps of a tiny model."""
    settings = {
        "model": str(checkpoint("llava")),
        "data": str(data),
        "out": str(out),
        "steps": 3,
        "batch": 4,
        "warmup": 1,
        "log_every": 1,
        "lora": LoraOptions(rank=2),
        "rates": Rates(lm=2e-3, heads=5e-3),
    }
    return Recipe(**(settings | changed))


def train(made: Recipe) -> list[dict[str, float]]:
    """The steps' lines of the log."""
    out = train_surfacing.train(made, command=["test"])
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("data"), 16)  # 24 examples with those of labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to measure keys on."""
    return write_talks(tmp_path_factory.mktemp("photos"), 64)


def test_accumulated_steps_are_those_of_the_whole_batch(checkpoint, data, tmp_path) -> None:
    losses = weighted(*READ)
    whole = train(recipe(checkpoint, data, tmp_path / "a", losses=losses))
    found = train(recipe(checkpoint, data, tmp_path / "b", losses=losses, batch=2, accumulate=2))
    assert len(whole) == 3 and {f"loss_{name}" for name in losses.active()} <= {
        name for line in whole for name in line
    }
    for one, other in zip(whole, found, strict=True):
        for name in one:
            if "loss" in name or name == "grad_norm":
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_losses_of_the_log_add_up(checkpoint, data, tmp_path) -> None:
    losses = weighted("mask", "kl")
    for line in train(recipe(checkpoint, data, tmp_path / "a", losses=losses, lm=0.7)):
        terms = {"lm": 0.7} | {name: term.weight for name, term in losses.active().items()}
        total = sum(weight * line.get(f"loss_{name}", 0) for name, weight in terms.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["images_per_s"] > 0 and line["tokens_per_s"] > 0 and 0 < line["data_wait"] < 1


def test_dependence_trains_and_is_resumed(checkpoint, photos, tmp_path) -> None:
    losses = steps.only("dependence", "mass")
    losses = replace(losses, dependence=replace(losses.dependence, floor=1.0))
    losses = replace(losses, mass=replace(losses.mass, ceiling=0.0))
    keys = replace(Recipe().keys, lowest=0.5)
    more: dict[str, Any] = {"losses": losses, "keys": keys, "steps": 4}
    whole = train(recipe(checkpoint, photos, tmp_path / "a", **more))
    train(recipe(checkpoint, photos, tmp_path / "b", **more, stop_at=2))
    resumed = train(recipe(checkpoint, photos, tmp_path / "b", **more, resume=True))
    for one, other in zip(whole, resumed, strict=True):
        for name in one:
            if "loss" in name:
                assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name
    assert all(line["loss_dependence"] > 0 for line in whole)
    whole, resumed = (load_file(tmp_path / run / "adapter_model.safetensors") for run in "ab")
    torch.testing.assert_close(resumed, whole, atol=1e-6, rtol=1e-6)


def test_dependence_needs_two_images_a_step(checkpoint, photos, tmp_path) -> None:
    losses = steps.only("dependence")
    more: dict[str, Any] = {"losses": losses, "batch": 1, "lm": 1.0}
    with pytest.raises(ValueError, match="two examples a step for `dependence`, found batch=1"):
        recipe(checkpoint, photos, tmp_path / "a", **more, accumulate=1)
    more["keys"] = replace(Recipe().keys, lowest=0.5)
    lines = train(recipe(checkpoint, photos, tmp_path / "b", **more, accumulate=6, steps=2))
    assert all(line["loss_dependence"] > 0 for line in lines)


def test_a_folder_with_another_run_is_left_alone(checkpoint, data, tmp_path) -> None:
    made = recipe(checkpoint, data, tmp_path / "a", steps=2, save_every=1)
    train(made)
    before = {p: p.read_bytes() for p in made_files(tmp_path / "a")}
    with pytest.raises(ValueError, match="expected an empty run folder, found another run"):
        train(made)
    assert {p: p.read_bytes() for p in made_files(tmp_path / "a")} == before
    assert {p.name for p in (tmp_path / "a").glob("checkpoint-*")} == {
        "checkpoint-1",
        "checkpoint-2",
    }
    weights = load_file(tmp_path / "a" / "checkpoint-2" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)  # never the frozen base


def made_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_unknown_keys_and_wrong_values_are_refused() -> None:
    for override, says in (
        ("losses.mask.size=1", "config key 'losses.mask.size' is unknown"),
        ("colour=1", "config key 'colour' is unknown"),
        ("steps=0", "config key 'steps': expected a whole number of 1 or more, found 0"),
        ("quant=int4", "expected quant to be empty or nf4, found 'int4'"),
        ("schedule=fast", "config values: expected schedule linear, cosine, .* found 'fast'"),
        ("lora.parts=[lm", "override 'lora.parts=.lm': expected YAML, found"),
        ("losses.mask.weight=1", "expected layers for a term of weight 1"),
    ):
        with pytest.raises(ValueError, match=says):
            load_config(Recipe, None, [override])


def test_stages_are_typed_as_numbers() -> None:
    for text, value in (("zero=2", "2"), ("zero=3_offload", "3_offload"), ("zero=", "")):
        assert load_config(Recipe, None, [text]).zero == value


def test_the_recipes_configs_are_whole() -> None:
    for name in ("train_surfacing", "train_artifacts"):
        made = load_config(Recipe, ROOT / "recipes" / f"{name}.yaml")
        assert made.losses.active() and not made.out


def test_a_log_goes_on_after_its_last_checkpoint(tmp_path) -> None:
    lines = [json.dumps({"loss": 1.0, "step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(lines) + '{"loss": 0')  # cut off
    for since, kept in ((2, lines[:2]), (3, lines), (None, [])):
        copy = tmp_path / str(since)
        copy.mkdir()
        (copy / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text())
        with Monitor(5, copy, main=True) as monitor:
            monitor.begin(since)
        assert (copy / "log.jsonl").read_text() == "".join(kept)
    with Monitor(5, tmp_path, main=False) as other:
        other.begin(None)
        other.line({"loss": 2.0, "step": 9})
    assert (tmp_path / "log.jsonl").read_text().endswith('{"loss": 0')
