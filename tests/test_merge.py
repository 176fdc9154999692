"""`kvfix merge`: what it writes gives what model and adapter gave, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import steps
import tiny
import torch
from commands import call, launch
from safetensors.torch import load_file, save_file
from test_lora import PARTS, _logits, _train

from kvfix.commands.merge import merge
from kvfix.models import load_mlm
from kvfix.repair.gate import KeyGate
from kvfix.repair.lora import LoraOptions, Rates, attach, parameter_groups


def _adapter(folder: Path, out: Path, **options) -> torch.Tensor:
    """Train an adapter a little and save it; the logits it gives."""
    mlm, report = attach(load_mlm(str(folder)), LoraOptions(parts=PARTS, rank=2, **options))
    _train(mlm, parameter_groups(mlm, report, Rates(lm=1e-2, projector=1e-2, vision=1e-2)))
    mlm.model.save_pretrained(out)
    return _logits(mlm)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_merged_folder_gives_the_same_logits(name, dora, checkpoint, tmp_path: Path) -> None:
    folder = checkpoint(name)
    tuned = _adapter(folder, tmp_path / "adapter", dora=dora)
    out = tmp_path / "merged"
    ended = call("merge", "--model", folder, "--adapter", tmp_path / "adapter", "--out", out)
    assert ended.code == 0, ended.err
    assert str(out) in ended.err and ended.out == ""
    assert not list(out.glob("adapter*"))
    assert (tuned - _logits(load_mlm(str(folder)))).abs().max() > 0.05
    torch.testing.assert_close(_logits(load_mlm(str(out))), tuned, atol=1e-4, rtol=0)
    names = [load_file(path / "model.safetensors").keys() for path in (folder, out)]
    assert names[0] == names[1]  # served under the names of the base
    prompt = steps.prompts(1)
    ids = [load_mlm(str(path)).encode(prompt).inputs["input_ids"] for path in (folder, out)]
    assert torch.equal(*ids)


def test_the_type_of_the_weights_is_kept_unless_told(tmp_path: Path) -> None:
    folder = tiny.build("llava", tmp_path / "base", dtype=torch.bfloat16)
    _adapter(folder, tmp_path / "adapter")
    for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        out = merge(
            str(folder), adapter=str(tmp_path / "adapter"), out=tmp_path / dtype, dtype=dtype
        )
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
        assert "expected a new or empty folder to merge into" in refused(out=taken)
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
    KeyGate(torch.ones(4, 2, 3, dtype=torch.bool), [2]).save(gated)
    assert "weights cannot hold a gate" in refused(adapter=gated)


def test_an_empty_folder_is_taken(checkpoint, tmp_path: Path) -> None:
    _adapter(checkpoint("llava"), tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge(str(checkpoint("llava")), adapter=str(tmp_path / "adapter"), out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
