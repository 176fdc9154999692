"""Checkpoints that are quantised on disk: what is planned, read, trained, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from bitsandbytes.nn import Linear4bit
from commands import call
from safetensors.torch import load_file
from transformers import AutoConfig

from kvfix.checkpoint.quantised import (
    estimated_bytes,
    quantised,
    stored_bytes,
    without_quantisation,
)
from kvfix.mlm.load import load_mlm
from kvfix.repair.dry_run import skeleton
from kvfix.repair.lora import LoraOptions, attach
from kvfix.repair.plan.make import PlanOptions, make_plan
from kvfix.repair.plan.sizes import nf4_bytes

Checkpoint = Callable[[str], Path]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
PACKED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
    "ignore": ["re:.*vision_tower.*", "re:(a+)+$", "lm_head"],
}
METHODS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "gptq": GPTQ,
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": PACKED,
    "mxfp4": {"quant_method": "mxfp4"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


@pytest.fixture(scope="module")
def stored(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA whose language model lies on disk in nf4."""
    folder = tmp_path_factory.mktemp("nf4")
    mlm = load_mlm(str(checkpoint("llava_wide")), quant="nf4")
    mlm.base.save_pretrained(folder)
    mlm.processor.save_pretrained(folder)
    return folder


def with_method(folder: Path, out: Path, settings: dict[str, Any]) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return out


def test_the_plan_counts_the_bytes_on_disk(stored: Path) -> None:
    found = stored_bytes(stored)
    assert found == sum(x.nbytes for x in load_file(stored / "model.safetensors").values())
    config = AutoConfig.from_pretrained(stored)
    processor = load_mlm(str(stored)).processor
    plan = make_plan(config, PlanOptions(), name="x", processor=processor, stored=found)
    assert {m.quant for m in plan.memory} == {"nf4"} and list(plan.reading) == ["nf4"]
    assert {m.weights for m in plan.memory if not m.refusal} == {found}


def test_without_weights_the_config_tells_nearly_the_same(stored: Path) -> None:
    config = AutoConfig.from_pretrained(stored)
    model = skeleton(without_quantisation(config), name="x", dtype=torch.float32).base
    assert stored_bytes(stored) == pytest.approx(
        estimated_bytes(quantised(config), model, nf4_bytes), rel=0.03
    )


def test_the_command_plans_it(stored: Path) -> None:
    ended = call("plan", "--model", stored, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["memory"][0]["weights"] == stored_bytes(stored)
    assert "to diagnose this sample: nf4" in ended.err


def test_it_trains_and_is_never_repacked(stored: Path) -> None:
    mlm, _ = attach(load_mlm(str(stored)), LoraOptions(rank=2))
    packed = [m for m in mlm.model.modules() if isinstance(m, Linear4bit)]
    assert packed and not any(m.support_avx512bf16_for_cpu for m in packed)
    encoded = mlm.encode(steps.prompts(1))
    mlm.model(**encoded.inputs).logits.float().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in mlm.model.parameters())


def test_it_is_not_quantised_again(stored: Path) -> None:
    for quant in ("nf4", "int8"):
        with pytest.raises(ValueError, match=rf"quant={quant}, found .* quantised by nf4; leave"):
            load_mlm(str(stored), quant=quant)


@pytest.mark.parametrize("method", METHODS)
def test_every_other_method_is_one_line_with_its_memory(
    method: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = with_method(checkpoint("llava_wide"), tmp_path / "model", METHODS[method])
    (folder / "model.safetensors").unlink()
    ended = call("plan", "--model", folder)
    assert ended.code == 1
    assert f"quantised by {method}" in ended.error and "cannot be trained" in ended.error
    assert ended.error.endswith("GiB")


@pytest.mark.parametrize("settings", [{"bits": 4}, {"quant_method": "nosuch"}, {"a": [[[]]]}])
def test_a_method_that_nobody_knows_is_one_line(
    settings: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = with_method(checkpoint("llava_wide"), tmp_path / "model", settings)
    ended = call("plan", "--model", folder)
    assert ended.code == 1 and "cannot be trained" in ended.error


def test_reading_without_its_package_says_which(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = with_method(checkpoint("llava_wide"), tmp_path / "model", GPTQ)
    with pytest.raises(ValueError, match=r"quantised by gptq needs more here: .*optimum"):
        load_mlm(str(folder))


def test_modules_that_are_left_as_they_are_are_found_under_old_and_new_names(
    checkpoint: Checkpoint,
) -> None:
    config = AutoConfig.from_pretrained(checkpoint("qwen2_5_vl"))
    model = skeleton(config, name="x", dtype=torch.float32).base
    sizes = []
    for skipped in (["visual"], ["model.visual"], ["re:.*visual.*"], []):
        config.quantization_config = {**GPTQ, "modules_to_not_convert": skipped}
        sizes.append(estimated_bytes(quantised(config), model, nf4_bytes))
    assert sizes[0] == sizes[1] == sizes[2] > sizes[3]
