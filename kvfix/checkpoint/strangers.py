"""What is given as a model and is something else: a sentence on the way out, from names and JSON
only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfix.wording import shown

# Checkpoints of the original LLaVA code, by the last part of their names, and the same weights in
# the layout of transformers.
CONVERTED = {
    "llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
    "llama3-llava-next-8b": "llava-hf/llama3-llava-next-8b-hf",
    "llava-next-72b": "llava-hf/llava-next-72b-hf",
    "llava-next-110b": "llava-hf/llava-next-110b-hf",
    "llava-onevision-qwen2-0.5b-ov": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-onevision-qwen2-0.5b-si": "llava-hf/llava-onevision-qwen2-0.5b-si-hf",
    "llava-onevision-qwen2-7b-ov": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "llava-onevision-qwen2-7b-si": "llava-hf/llava-onevision-qwen2-7b-si-hf",
    "llava-onevision-qwen2-7b-ov-chat": "llava-hf/llava-onevision-qwen2-7b-ov-chat-hf",
    "llava-onevision-qwen2-72b-ov-sft": "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    "llava-onevision-qwen2-72b-ov-chat": "llava-hf/llava-onevision-qwen2-72b-ov-chat-hf",
}
_ANY_HF = "one of llava-hf (huggingface.co/llava-hf)"


def original_llava(config: Mapping[str, Any], name: str) -> str | None:
    """Of the original LLaVA code, whose model types transformers means otherwise; `name` was asked
    for.
    """
    if "vision_config" in config or not any(key.startswith("mm_") for key in config):
        return None
    named = [name, str(config.get("_name_or_path") or "")]
    lasts = [part.rstrip("/").rpartition("/")[2].lower() for part in named]
    known = next((CONVERTED[last] for last in lasts if last in CONVERTED), None)
    where = f"{known} holds the same weights" if known else f"take {_ANY_HF}"
    return (
        "expected a checkpoint in the layout of transformers (-hf), found one of the original "
        f"LLaVA code; {where}, or convert your own with convert_llava*_weights_to_hf.py of "
        "transformers 4"
    )


def not_a_checkpoint(path: Path) -> str | None:
    """What a path without a config.json holds instead."""
    if path.is_file():
        return _file(path)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if "adapter_config.json" in names:
        return (
            "expected a model, found a LoRA adapter; pass it as --adapter, and as --model its base"
            f"{_base(path / 'adapter_config.json')}"
        )
    if any(name.endswith(".gguf") for name in names):
        return f"expected safetensors, found GGUF; {_GGUF}"
    below = sorted(path.glob("*/config.json"))[:3]
    if below:
        folders = ", ".join(str(file.parent) for file in below)
        return f"expected a checkpoint folder, found one that holds such folders: {folders}"
    if any(name.endswith("processor_config.json") for name in names) or "tokenizer.json" in names:
        return (
            "expected a model with config.json and weights, found a processor or tokenizer alone; "
            "it can be given as --processor"
        )
    return None


_GGUF = "kvfix reads features inside the Hugging Face model: take the checkpoint it was made from"


def _file(path: Path) -> str:
    if path.suffix == ".gguf":
        return f"expected a checkpoint folder, found a GGUF file; {_GGUF}"
    return f"expected a checkpoint folder, found a file; give its folder: {path.parent}"


def _base(file: Path) -> str:
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, OSError, AttributeError):
        base = None
    return f" ({shown(base)})" if base else ""


def model_type_hint(model_type: object) -> str:
    """What is known of a model type that no family has; empty if nothing is."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return (
            " (a multimodal model of a family that kvfix has no row for, see kvfix/mlm/families.py "
            "and `kvfix families`)"
        )
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return " (a language model alone, which sees no images)"
    if model_type in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return " (a vision encoder: kvfix diagnose takes it as --reference-encoder)"
    return ""
