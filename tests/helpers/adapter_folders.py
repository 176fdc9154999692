"""Adapters as people have them: made on a tiny model with PEFT, then spoilt or renamed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import steps
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from kvfix.mlm.load import Mlm, load_mlm

LM = r"model\.language_model\.layers\.\d+\.self_attn\.[qv]_proj"
PREFIX = "base_model.model."


def logits(mlm: Mlm) -> torch.Tensor:
    """At the last position of two prompts."""
    with torch.no_grad():
        return mlm.model(**mlm.encode(steps.prompts()).inputs).logits[:, -1]


def make(base: Path, folder: Path, *, seed: int = 0, **lora: Any) -> torch.Tensor:
    """Save an adapter with random weights; the logits that its model gives."""
    mlm = load_mlm(str(base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(mlm.base, LoraConfig(**({"r": 2, "target_modules": LM} | lora)))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(noise.to(parameter) * 0.2)
        model.save_pretrained(folder, save_embedding_layers=False)
    return logits(Mlm(**(vars(mlm) | {"model": model.eval()})))


def of_peft(base: Path, folder: Path) -> torch.Tensor:
    """The logits that PEFT's own loading gives."""
    mlm = load_mlm(str(base))
    model = PeftModel.from_pretrained(mlm.base, str(folder))
    return logits(Mlm(**(vars(mlm) | {"model": model.eval()})))


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Write other tensors."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def rename(folder: Path, then: Callable[[str], str]) -> None:
    """Give every tensor the name that it had in an older library."""
    change_tensors(
        folder, lambda x: {PREFIX + then(n.removeprefix(PREFIX)): t for n, t in x.items()}
    )


def build_tied(name: str, folder: Path) -> Path:
    """A tiny checkpoint whose head is its input embeddings, as in Qwen2.5-VL-3B."""
    tiny.build(name, folder)
    mlm = load_mlm(str(folder))
    for config in (mlm.config, mlm.config.text_config):
        config.tie_word_embeddings = True
    mlm.model.tie_weights()
    mlm.model.save_pretrained(folder)
    tied = load_mlm(str(folder)).model
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    return folder


def with_token(base: Path, folder: Path, **lora) -> torch.Tensor:
    """An adapter of a training that added [SEG]."""
    mlm = load_mlm(str(base))
    mlm.processor.tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[SEG]")]})
    mlm.model.resize_token_embeddings(len(mlm.processor.tokenizer), mean_resizing=False)
    mlm.model.save_pretrained(folder.parent / "grown")
    mlm.processor.save_pretrained(folder.parent / "grown")
    lora = {"modules_to_save": ["lm_head", "embed_tokens"]} | lora
    said = make(folder.parent / "grown", folder, **lora)
    mlm.processor.tokenizer.save_pretrained(folder)
    change_config(folder, base_model_name_or_path=str(base))
    return said
