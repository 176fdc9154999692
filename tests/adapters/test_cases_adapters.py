"""Adapters as users have them (`shared/cases`): each behaves as its README says."""

from __future__ import annotations

import json
from pathlib import Path

import adapter_folders as made
import pytest
import torch
from commands import call
from peft import PeftModel
from places import ROOT, SHARED
from safetensors.torch import load_file

from kvfix.adapters.naming import QWEN_NAMES
from kvfix.mlm.load import load_mlm

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore::UserWarning")]

CASES = SHARED / "cases"
# Those that PEFT itself loads into the base as it is.
OF_PEFT = (
    "adapter_all_linear_llava",
    "adapter_dora",
    "adapter_modules_to_save",
    "adapter_named",
    "adapter_names_mid_all_llava_onevision",
    "adapter_names_old_lm_llava",
    "adapter_pissa",
    "adapter_rank_pattern",
    "adapter_rslora",
    "adapter_tied_lora_head_qwen2_5_vl",
    "adapter_tied_saved_qwen2_5_vl",
    "adapter_tokens",
)
REFUSED = {
    "adapter_zero3_shape0": ("EMPTY", "stage3_gather_16bit_weights_on_model_save"),
    "adapter_zero3_nofile": ("EMPTY", "stage3_gather_16bit_weights_on_model_save"),
    "adapter_bin": ("found adapter_model.bin", "convert it once: python -c"),
}


@pytest.fixture(scope="module", autouse=True)
def _cases_are_there() -> None:
    if not CASES.is_dir():
        pytest.fail(f"no cases in {CASES}; set KVFIX_SHARED")


def base_of(case: str) -> Path:
    [file] = (CASES / case / "adapter").rglob("adapter_config.json")
    return CASES / json.loads(file.read_text())["base_model_name_or_path"]


def merged(case: str, out: Path) -> torch.Tensor:
    """The logits of what `kvfix merge` writes; its own figures are within 1e-4."""
    words = ("--model", base_of(case), "--adapter", CASES / case / "adapter")
    ended = call("merge", *words, "--dtype", "float32", "--out", out)
    assert ended.code == 0, ended.err
    assert ended.err.count("(0.0001 allowed)") == 2
    return made.logits(load_mlm(str(out)))


@pytest.mark.parametrize("case", OF_PEFT)
def test_it_loads_and_merges_as_peft_loads_it(case: str, tmp_path: Path) -> None:
    [file] = (CASES / case / "adapter").rglob("adapter_config.json")
    expected = made.of_peft(base_of(case), file.parent)
    mlm = load_mlm(str(base_of(case)), adapter=str(CASES / case / "adapter"))
    torch.testing.assert_close(made.logits(mlm), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(merged(case, tmp_path / "out"), expected, atol=1e-4, rtol=0)
    base = made.logits(load_mlm(str(base_of(case))))
    assert (expected - base).abs().max() > 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_old_names_of_qwen_load_as_peft_loads_the_new_ones(tmp_path: Path) -> None:
    case = "adapter_names_old_all_qwen2_5_vl"
    folder = CASES / case / "adapter"
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    (renamed / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes()
    )
    made.rename(renamed, QWEN_NAMES[0].now)
    assert (
        load_file(renamed / "adapter_model.safetensors").keys()
        != load_file(folder / "adapter_model.safetensors").keys()
    )
    expected = made.of_peft(base_of(case), renamed)
    assert torch.equal(made.logits(load_mlm(str(base_of(case)), adapter=str(folder))), expected)
    torch.testing.assert_close(merged(case, tmp_path / "out"), expected, atol=1e-4, rtol=0)


def test_weights_beside_the_adapter_are_loaded(tmp_path: Path) -> None:
    case = "adapter_non_lora"
    folder = CASES / case / "adapter"
    beside = torch.load(folder / "non_lora_state_dict.bin", weights_only=True)
    mlm = load_mlm(str(base_of(case)))
    mlm.base.load_state_dict(
        {n.removeprefix(made.PREFIX): t for n, t in beside.items()}, strict=False
    )
    model = PeftModel.from_pretrained(mlm.base, str(folder))
    expected = made.logits(type(mlm)(**(vars(mlm) | {"model": model})))
    found = made.logits(load_mlm(str(base_of(case)), adapter=str(folder)))
    assert torch.equal(found, expected)
    assert (found - made.of_peft(base_of(case), folder)).abs().max() > 1e-3
    torch.testing.assert_close(merged(case, tmp_path / "out"), expected, atol=1e-4, rtol=0)


def test_the_tokenizer_of_a_new_token_is_used(tmp_path: Path) -> None:
    case = "adapter_new_token"
    folder = CASES / case / "adapter"
    mlm = load_mlm(str(base_of(case)), adapter=str(folder))
    assert any("[SEG]" in text for text in mlm.warnings)
    bare = load_mlm(str(base_of(case)))
    rows = load_file(folder / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    bare.model.resize_token_embeddings(len(rows), mean_resizing=False)
    model = PeftModel.from_pretrained(bare.model, str(folder))
    expected = made.logits(type(bare)(**(vars(bare) | {"model": model})))
    torch.testing.assert_close(made.logits(mlm), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(merged(case, tmp_path / "out"), expected, atol=1e-4, rtol=0)
    assert "[SEG]" in load_mlm(str(tmp_path / "out")).processor.tokenizer.get_vocab()


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line_with_the_way_out(case: str, tmp_path: Path) -> None:
    words = ("--model", base_of(case), "--adapter", CASES / case / "adapter")
    for ended in (
        call("merge", *words, "--out", tmp_path / "out"),
        call("eval", *words, "--out", tmp_path / "run"),
    ):
        assert ended.code == 1 and all(says in ended.error for says in REFUSED[case])
    assert not list(tmp_path.iterdir())


def test_a_lora_of_another_nano_is_refused(tmp_path: Path) -> None:
    """Adapters of one nano have the shapes of another's language model."""
    nanos = ROOT / "checkpoints" / "nano"
    folder = tmp_path / "adapter"
    made.make(nanos / "llava_onevision", folder)
    words = ("eval", "--model", nanos / "qwen2_5_vl", "--adapter", folder)
    ended = call(*words, "--out", tmp_path / "run")
    assert ended.code == 1 and "--force-adapter" in ended.error
