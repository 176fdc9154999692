"""`kvfix merge`: what it writes gives what model and adapter gave, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import adapter_folders as made
import pytest
import steps
import tiny
import torch
from commands import call, launch
from lora_fits import PARTS, logits, train
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kvfix.merge.proof import words_of
from kvfix.merge.run import merge
from kvfix.mlm.load import load_mlm
from kvfix.repair.lora import LoraOptions, Rates, attach, parameter_groups
from kvfix.repair.lora import merge as merge_adapter


def _adapter(folder: Path, out: Path, **options) -> torch.Tensor:
    """Train an adapter a little and save it; the logits it gives."""
    mlm, report = attach(load_mlm(str(folder)), LoraOptions(parts=PARTS, rank=2, **options))
    train(mlm, parameter_groups(mlm, report, Rates(lm=1e-2, projector=1e-2, vision=1e-2)))
    mlm.model.save_pretrained(out)
    return logits(mlm)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_merged_folder_gives_the_samelogits(name, dora, checkpoint, tmp_path: Path) -> None:
    folder = checkpoint(name)
    tuned = _adapter(folder, tmp_path / "adapter", dora=dora)
    out = tmp_path / "merged"
    ended = call("merge", "--model", folder, "--adapter", tmp_path / "adapter", "--out", out)
    assert ended.code == 0, ended.err
    assert str(out) in ended.err and ended.out == ""
    assert not list(out.glob("adapter*"))
    assert (tuned - logits(load_mlm(str(folder)))).abs().max() > 0.05
    torch.testing.assert_close(logits(load_mlm(str(out))), tuned, atol=1e-4, rtol=0)
    names = [load_file(path / "model.safetensors").keys() for path in (folder, out)]
    assert names[0] == names[1]  # served under the names of the base
    prompt = steps.prompts(1)
    ids = [load_mlm(str(path)).encode(prompt).inputs["input_ids"] for path in (folder, out)]
    assert torch.equal(*ids)


def test_the_type_of_the_weights_is_kept_unless_told(tmp_path: Path) -> None:
    folder = tiny.build("llava", tmp_path / "base", dtype=torch.bfloat16)
    _adapter(folder, tmp_path / "adapter")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        adapter = str(tmp_path / "adapter")
        out = merge(str(folder), adapter=adapter, out=tmp_path / dtype, dtype=dtype).folder
        assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {expected}
        assert load_mlm(str(out)).dtype == expected


def test_a_process_of_its_own(checkpoint, tmp_path: Path) -> None:
    _adapter(checkpoint("llava"), tmp_path / "adapter")
    words = ("--model", checkpoint("llava"), "--adapter", tmp_path / "adapter")
    ended = launch("merge", *words, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    load_mlm(str(tmp_path / "out"))


def test_what_is_refused(checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llava_wide")
    adapter = tmp_path / "adapter"
    _adapter(folder, adapter)
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("mine")

    def refused(*, model=folder, adapter=adapter, out=tmp_path / "out") -> str:
        ended = call("merge", "--model", model, "--adapter", adapter, "--out", out)
        assert ended.code == 1 and not (tmp_path / "out").exists()
        return ended.error

    for taken in (full, full / "kept.txt"):
        assert "expected a new or empty folder" in refused(out=taken)
    assert [path.name for path in full.iterdir()] == ["kept.txt"]
    assert "expected an adapter folder or a hub id" in refused(adapter=tmp_path / "no")
    assert "expected a folder or a hub id" in refused(model="nowhere")
    quantised = tmp_path / "nf4"
    load_mlm(str(folder), quant="nf4").model.save_pretrained(quantised)
    load_mlm(str(folder)).processor.save_pretrained(quantised)
    assert "expected an unquantised base to merge into" in refused(model=quantised)
    still = shutil.copytree(adapter, tmp_path / "still")
    weights = load_file(still / "adapter_model.safetensors")
    for name in weights:
        if "lora_B" in name:
            weights[name].zero_()
    save_file(weights, still / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "every update all zero" in refused(adapter=still)
    gated = shutil.copytree(adapter, tmp_path / "gated")
    save_file({"bias": torch.zeros(1, 2)}, gated / "kvfix_gate.safetensors")
    assert "found kvfix_gate.safetensors beside it" in refused(adapter=gated)


def test_an_empty_folder_is_taken(checkpoint, tmp_path: Path) -> None:
    _adapter(checkpoint("llava"), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge(str(checkpoint("llava")), adapter=str(tmp_path / "adapter"), out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


# --- what merges cannot be told from outside ------------------------------------------------------

KINDS = {
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "embeddings saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [70, 71]}},
    "tied by peft": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "pissa": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "olora": {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
    "biases": {"target_modules": ["q_proj", "v_proj"], "bias": "all"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_adapter_merges_into_what_it_is(kind, tied, tmp_path: Path) -> None:
    base = tmp_path / "base"
    if tied:
        made.build_tied("qwen2_5_vl", base)
    else:
        tiny.build("qwen2_5_vl", base)
    made.make(base, tmp_path / "adapter", **KINDS[kind])
    expected = made.of_peft(base, tmp_path / "adapter")
    found = merge(str(base), adapter=str(tmp_path / "adapter"), out=tmp_path / "out")
    assert [x.prompt for x in found.differences] == ["text", "image"]
    assert all(x.largest < 1e-4 and x.allowed == 1e-4 for x in found.differences)
    mlm = load_mlm(str(tmp_path / "out"))
    torch.testing.assert_close(logits(mlm), expected, atol=1e-4, rtol=0)
    ends = mlm.model.get_input_embeddings().weight, mlm.model.get_output_embeddings().weight
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    says = config["tie_word_embeddings"], config["text_config"].get("tie_word_embeddings", False)
    assert says == (torch.equal(*ends),) * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_bfloat16_merges_within_its_rounding(tmp_path: Path) -> None:
    for name in tiny.FAMILIES:
        base = tiny.build(name, tmp_path / name, dtype=torch.bfloat16)
        made.make(base, tmp_path / f"{name}_adapter")
        found = merge(
            str(base), adapter=str(tmp_path / f"{name}_adapter"), out=tmp_path / f"{name}_out"
        )
        assert all(1e-4 < x.allowed < 0.2 and x.largest < x.allowed for x in found.differences)
        # The bound tells rounding from a mistake: without the adapter it is passed ten times over.
        tuned = words_of(load_mlm(str(base), adapter=str(tmp_path / f"{name}_adapter")))
        without = words_of(load_mlm(str(base)), like=tuned)
        apart = ((tuned.text_LV, without.text_LV), (tuned.image_LV, without.image_LV))
        for (one, other), x in zip(apart, found.differences, strict=True):
            assert (one.float() - other.float()).abs().max() > 10 * x.allowed


def test_a_merge_that_went_wrong_is_not_kept(checkpoint, tmp_path, monkeypatch) -> None:
    base = checkpoint("llava")
    made.make(base, tmp_path / "adapter")
    words = ("--model", base, "--adapter", tmp_path / "adapter", "--out", tmp_path / "out")

    def forgets(mlm):
        """As a tie that comes back, or an adapter that is dropped."""
        merged = merge_adapter(mlm)
        merged.model.lm_head.weight.data[5] += 0.01
        return merged

    with monkeypatch.context() as patch:
        patch.setattr("kvfix.merge.run.merge_adapter", forgets)
        ended = call("merge", *words)
    assert ended.code == 1 and "of the model with its adapter within 0.0001" in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    def saves_another(self, folder, **more):
        self.lm_head.weight.data[5] += 0.01
        return save(self, folder, **more)

    with monkeypatch.context() as patch:
        save = PreTrainedModel.save_pretrained
        patch.setattr(PreTrainedModel, "save_pretrained", saves_another)
        patch.setattr("kvfix.merge.run._save", _saves_last)
        ended = call("merge", *words)
    assert ended.code == 1 and "of the merged model in memory within 0.0001" in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    ended = call("merge", *words)  # and a second try works
    assert ended.code == 0, ended.err
    assert "text prompt: logits differ by at most" in ended.err and "(0.0001 allowed)" in ended.err


def _saves_last(mlm, folder):
    """`_save`, asking before it saves."""
    tuned = words_of(mlm)
    merged = merge_adapter(mlm)
    said = words_of(merged, like=tuned)
    merged.model.save_pretrained(folder)
    merged.processor.save_pretrained(folder)
    return tuned, said


def test_a_merge_that_was_killed_does_not_stand_in_the_way(checkpoint, tmp_path) -> None:
    made.make(checkpoint("llava"), tmp_path / "adapter")
    script = (
        "import os, sys; from kvfix.merge import run as m; "
        "m.compare = lambda *a: os._exit(9); "
        "from pathlib import Path; "
        "m.merge(sys.argv[1], adapter=sys.argv[2], out=Path(sys.argv[3]))"
    )
    words = [str(checkpoint("llava")), str(tmp_path / "adapter"), str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True)
    assert ended.returncode == 9, ended.stderr
    assert not (tmp_path / "out").exists()
    merge(words[0], adapter=words[1], out=tmp_path / "out")
    load_mlm(words[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


def test_tokens_that_were_added_are_in_the_merged_folder(checkpoint, tmp_path) -> None:
    expected = made.with_token(checkpoint("qwen2_5_vl"), tmp_path / "adapter")
    merge(str(checkpoint("qwen2_5_vl")), adapter=str(tmp_path / "adapter"), out=tmp_path / "out")
    mlm = load_mlm(str(tmp_path / "out"))
    assert "[SEG]" in mlm.processor.tokenizer.get_vocab()
    torch.testing.assert_close(logits(mlm), expected, atol=1e-4, rtol=0)
