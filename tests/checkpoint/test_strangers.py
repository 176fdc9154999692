"""What people give as a model and is something else: one line with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from kvfix.mlm.load import load_mlm

Checkpoint = Callable[[str], Path]
ORIGINAL = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}


def folder_of(tmp_path: Path, name: str, **files: object) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", ["llava", "llava_llama", "llava_qwen", "llava_mistral"])
@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf holds the same weights"),
        ("llava-onevision-qwen2-7b-ov", "llava-hf/llava-onevision-qwen2-7b-ov-hf holds"),
        ("llama3-llava-next-8b", "llava-hf/llama3-llava-next-8b-hf holds"),
        ("my-llava", "take one of llava-hf .*, or convert your own"),
    ],
)
def test_the_original_layout_names_its_conversion(kind, name, hub, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, name, config=ORIGINAL | {"model_type": kind})
    for model in (folder, folder / "config.json"):
        assert "layout of transformers (-hf)" in call("plan", "--model", model).error
    with pytest.raises(ValueError, match=rf"layout of transformers \(-hf\), found .*{hub}"):
        load_mlm(str(folder))
    moved = folder.rename(tmp_path / "other")
    (moved / "config.json").write_text(
        json.dumps(ORIGINAL | {"model_type": kind, "_name_or_path": f"./checkpoints/{name}"})
    )
    with pytest.raises(ValueError, match=hub):
        load_mlm(str(moved))


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}
    folder = folder_of(tmp_path, "lora", adapter_config=adapter)
    ended = call("eval", "--model", folder, "--out", tmp_path / "run")
    assert ended.code == 1
    assert "pass it as --adapter, and as --model its base ('Qwen/Qwen2.5-VL-7B" in ended.error


def test_gguf_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "gguf")
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    for model in (folder, folder / "model-q4.gguf"):
        for command in (["plan"], ["eval", "--out", tmp_path / "run"]):
            ended = call(*command, "--model", model)
            assert ended.code == 1 and "GGUF" in ended.error and "it was made from" in ended.error


def test_the_folder_above_lists_what_is_below(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds such folders: .*checkpoint-10"):
        load_mlm(str(tmp_path))


def test_a_weight_file_says_to_give_its_folder(checkpoint: Checkpoint) -> None:
    file = checkpoint("llava") / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"found a file; give its folder: .*llava"):
        load_mlm(str(file))


def test_a_processor_alone_is_no_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "processor", processor_config={}, tokenizer={})
    with pytest.raises(FileNotFoundError, match=r"it can be given as --processor"):
        load_mlm(str(folder))


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("llama", "a language model alone"),
        ("aya_vision", "family that kvfix has no row for"),
        ("siglip", "--reference-encoder"),
        ("never_heard_of", "found 'never_heard_of'$"),
    ],
)
def test_other_types_say_what_they_are(kind: str, hint: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "model", config={"model_type": kind})
    with pytest.raises(ValueError, match=rf"expected model_type to be one of gemma3, .*{hint}"):
        load_mlm(str(folder), random_weights=0)
    for model in (folder, folder / "config.json"):
        assert "expected model_type to be one of gemma3" in call("plan", "--model", model).error
