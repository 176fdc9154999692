"""Checkpoints and processors as users have them, from the cases kept beside the checkout.

Each case's README says what is right. The ordinary tests make small inputs of the same kinds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from commands import ENV, Ended, call
from places import ROOT, SHARED

from kvfix.checkpoint.quantised import stored_bytes
from kvfix.mlm.load import Prompt, load_mlm

pytestmark = pytest.mark.shared

CASES = SHARED / "cases"


@pytest.fixture(scope="module", autouse=True)
def _cases_are_there() -> None:
    if not CASES.is_dir():
        pytest.fail(f"no cases in {CASES}; set KVFIX_SHARED")


def evaluate(out: Path, *words: object) -> Ended:
    return call("eval", "--limit", 1, "--task", "mcq", "--site", "value", "--out", out, *words)


@pytest.mark.parametrize(
    ("case", "base"),
    [
        ("processor_old_llava", "llava"),
        ("processor_45_llava_next", "llava_next"),
        ("processor_Qwen2_5_VLImageProcessor", "qwen2_5_vl"),
        ("model_old_keys_llava_next", "llava_next"),
    ],
)
def test_it_reads_as_the_same_model_saved_today(case: str, base: str, tmp_path: Path) -> None:
    folder = CASES / case / "model"
    found, whole = load_mlm(str(folder)), load_mlm(str(CASES / "models" / base))
    prompt = [Prompt((tiny.photo(60, 100),), "a cat")]
    inputs = whole.encode(prompt).inputs
    for name, value in found.encode(prompt).inputs.items():
        assert value.shape == inputs[name].shape and (value == inputs[name]).all(), name
    assert found.model(**inputs).logits.isfinite().all()
    ended = evaluate(tmp_path / "run", "--model", folder)
    assert ended.code == 0, ended.err
    assert call("plan", "--model", folder).code == 0


def test_without_a_processor_another_one_is_asked_for_and_taken(tmp_path: Path) -> None:
    folder, out = CASES / "processor_none_qwen2_5_vl" / "model", tmp_path / "run"
    ended = evaluate(out, "--model", folder)
    assert ended.code == 1 and "--processor ID|DIR" in ended.error
    given = ("--processor", CASES / "models" / "qwen2_5_vl")
    ended = evaluate(out, "--model", folder, *given)
    assert ended.code == 0, ended.err
    assert call("plan", "--model", folder, *given).code == 0


@pytest.mark.parametrize("model", ["config_awq", "config_awq/config.json"])
def test_awq_says_what_it_can_do(model: str) -> None:
    ended = call("plan", "--model", CASES / model)
    assert ended.code == 1
    found = re.search(r"quantised by awq .*cannot be trained.* take ([\d.]+) GiB$", ended.error)
    # Qwen2.5-VL-7B-Instruct-AWQ on the hub: 6.9 GB.
    assert found and float(found[1]) == pytest.approx(6.9e9 / 2**30, rel=0.05)


def test_a_config_in_nf4_is_planned() -> None:
    ended = call("plan", "--model", CASES / "config_bnb", "--json")
    assert ended.code == 0, ended.err
    memory = json.loads(ended.out)["memory"]
    assert {m["quant"] for m in memory} == {"nf4"}
    assert 5 < memory[0]["weights"] / 2**30 < 7


def test_the_original_llava_names_its_conversion() -> None:
    for command in ("plan", "eval"):
        ended = call(command, "--model", CASES / "config_llava_original")
        assert ended.code == 1 and "llava-hf/llava-1.5-7b-hf holds the same" in ended.error


def test_a_model_in_nf4_is_planned_read_and_never_merged(tmp_path: Path) -> None:
    case = CASES / "model_bnb4"
    model = ("--model", case / "model")
    planned = call("plan", *model, "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["memory"][0]["weights"] == stored_bytes(case / "model")
    ended = evaluate(tmp_path / "run", *model)
    assert ended.code == 0, ended.err
    again = evaluate(tmp_path / "again", *model, "--quant", "nf4")
    assert again.code == 1 and "leave quant out" in again.error
    merged = call("merge", *model, "--adapter", case / "adapter", "--out", tmp_path / "merged")
    assert merged.code == 1 and "unquantised" in merged.error
    assert not (tmp_path / "merged").exists()


def test_a_model_in_nf4_is_trained(tmp_path: Path) -> None:
    config = tmp_path / "plain.yaml"  # no losses of chosen layers: the model has three
    config.write_text("steps: 2\nbatch: 2\nlora: {rank: 2}\n")
    script, model = ROOT / "recipes" / "train_surfacing.py", CASES / "model_bnb4" / "model"
    words = ["--config", config, f"model={model}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, env=ENV, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
