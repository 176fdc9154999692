"""Weights and tokens that were trained beside an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import adapter_folders as made
import pytest
import torch
from adapter_checks import refusal
from safetensors.torch import save_file

from kvfix import adapters
from kvfix.mlm.families import FAMILIES


@pytest.mark.parametrize("name", ["non_lora_state_dict.bin", "vit.safetensors"])
@pytest.mark.parametrize("old", [False, True])
def test_weights_beside_it_are_loaded(name, old, load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("qwen2_5_vl"), folder)
    before = load("qwen2_5_vl", adapter=str(folder))
    naming = FAMILIES["qwen2_5_vl"].old_names[0]
    full = {
        made.PREFIX + (naming.then(n) if old else n): t + 0.1
        for n, t in load("qwen2_5_vl").model.state_dict().items()
        if ".merger." in n
    }
    _save(full, folder / name)
    mlm = load("qwen2_5_vl", adapter=str(folder))
    for key, value in mlm.base.state_dict().items():
        if ".merger." in key:
            today = key if not old else naming.then(key)
            assert torch.equal(value, full[made.PREFIX + today])
    assert not torch.allclose(made.logits(mlm), made.logits(before))
    assert mlm.adapter.sha256 != before.adapter.sha256


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)


def test_projector_of_the_original_llava_code_is_loaded(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder)
    naming = FAMILIES["llava"].old_names[-1]
    made.rename(folder, naming.then)
    made.change_config(folder, target_modules=r"model\.layers\.\d+\.self_attn\.[qv]_proj")
    state = load("llava").model.state_dict()
    full = {n: t + 0.1 for n, t in state.items() if "multi_modal_projector" in n}
    torch.save(
        {f"base_model.model.{naming.then(n)}": t for n, t in full.items()},
        folder / "non_lora_trainables.bin",
    )
    names = torch.load(folder / "non_lora_trainables.bin", weights_only=True).keys()
    assert "base_model.model.model.mm_projector.0.weight" in names
    loaded = load("llava", adapter=str(folder)).base.state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in full.items())


class Bomb:
    """What a pickle must not make."""

    def __reduce__(self):
        """Would write a file."""
        return (Path.write_text, (Path("/tmp/kvfix-bomb"), "boom"))


def test_weights_beside_it_that_do_not_fit_are_refused_by_name(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("qwen2_5_vl"), folder)
    file = folder / "non_lora_state_dict.bin"
    weight = "base_model.model.model.visual.merger.ln_q.weight"
    for content, says in (
        ({"base_model.model.model.strange.weight": torch.ones(2)}, "such as 'model.strange"),
        ({weight: torch.ones(3)}, "1 of 1 tensors that it does not have in that shape"),
        ({weight: torch.full((32,), float("nan"))}, "NaN or infinity in"),
        ([torch.ones(3)], "as tensors by name, found list"),
        ({"a": Bomb()}, "as tensors alone, found"),
    ):
        torch.save(content, file)
        text = refusal(load, "qwen2_5_vl", folder)
        assert "non_lora_state_dict.bin" in text and says in text
    assert not Path("/tmp/kvfix-bomb").exists()
    file.write_bytes(b"PK\x03\x04 torn")
    assert "non_lora_state_dict.bin" in refusal(load, "qwen2_5_vl", folder)
    file.unlink()
    shutil.copy(checkpoint("qwen2_5_vl") / "model.safetensors", folder / "model.safetensors")
    assert "a whole model's weights beside it (model.safetensors)" in refusal(
        load, "qwen2_5_vl", folder
    )
    (folder / "model.safetensors").unlink()
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "scheduler.pt"):
        (folder / name).write_bytes(b"of a trainer")
    load("qwen2_5_vl", adapter=str(folder))


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_the_tokenizer_of_added_tokens_is_used(name, load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    expected = made.with_token(checkpoint(name), folder)
    with pytest.warns(adapters.AdapterWarning, match=r"has 1 tokens .*: '\[SEG\]'"):
        mlm = load(name, adapter=str(folder))
    token = len(load(name).processor.tokenizer)
    assert mlm.processor.tokenizer.convert_tokens_to_ids("[SEG]") == token
    assert mlm.model.get_output_embeddings().weight.shape[0] == token + 1
    torch.testing.assert_close(made.logits(mlm), expected)
    (folder / "tokenizer.json").unlink()
    assert "put the tokenizer that was trained with beside it" in refusal(load, name, folder)


def test_a_tokenizer_of_another_model_is_refused(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder)
    load("llava").processor.tokenizer.save_pretrained(folder)
    assert load("llava", adapter=str(folder)).warnings == ()
    file = folder / "tokenizer.json"
    text = json.loads(file.read_text())
    vocab = text["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    file.write_text(json.dumps(text))
    assert "it belongs to another model" in refusal(load, "llava", folder)
    file.write_text("{")
    assert "expected a tokenizer in tokenizer.json" in refusal(load, "llava", folder)
