"""Adapter folders with anything in them: a line that says what is wrong, or a model; never more."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import adapter_folders as made
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kvfix import adapters
from kvfix.mlm.load import FAMILIES, load_mlm

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**63, 10**30, 10**9, float("nan"), float("inf"), -0.0, 0.5, 1e300]),
    st.sampled_from(
        ["", "LORA", "(", "(.*)*x", "(.|.)*(.|..)*=", "all-linear", "model", ".*", "q_proj", "\x00"]
    ),
    st.text(max_size=8),
    st.lists(
        st.one_of(st.none(), st.integers(-2, 300), st.sampled_from(["q_proj", "", "("])), max_size=3
    ),
    st.dictionaries(
        st.sampled_from(["q_proj", "embed_tokens", "lm_head", "(.*)*x", "", "("]),
        st.one_of(
            st.none(),
            st.integers(-2, 10**9),
            st.text(max_size=3),
            st.lists(st.integers(-2, 10**6), max_size=3),
        ),
        max_size=3,
    ),
)
NAMES = st.sampled_from(
    [
        "base_model.model.lm_head.weight",
        "base_model.model.model.language_model.embed_tokens.weight",
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "lora_A",
        "",
        "base_model.model.",
        "a" * 3000,
    ]
)
FILES = st.sampled_from(
    ["training.json", "tokenizer.json", "tokenizer_config.json", "vit.safetensors", "a.bin", "x.pt"]
)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> Path:
    """An adapter with a bit of everything."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    made.make(
        checkpoint("llava"),
        folder,
        modules_to_save=["lm_head"],
        rank_pattern={"q_proj": 3},
        trainable_token_indices={"embed_tokens": [5]},
    )
    load_mlm(str(checkpoint("llava"))).processor.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(checkpoint):
    """Loaded once; each adapter gets a copy of its module tree."""
    return load_mlm(str(checkpoint("llava")))


@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
@given(data=st.data())
def test_any_adapter_folder_loads_or_is_refused_in_one_line(data, whole, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    shutil.copytree(whole, folder)
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(st.sampled_from([_config, _tensors, _bytes, _beside]))(data, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _load(base, folder)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1200, text
        assert "expected" in text, text
    finally:
        shutil.rmtree(folder.parent)


def _load(base: Any, folder: Path) -> None:
    from copy import copy, deepcopy

    found = adapters.find(str(folder))
    found = adapters.check_base(found, base.weights, name=base.id, force=False)
    loaded = adapters.load(
        deepcopy(base.model),
        found,
        processor=copy(base.processor),
        known=FAMILIES["llava"].old_names,
    )
    loaded.model.merge_and_unload(safe_merge=True)


def _config(data: Any, folder: Path) -> None:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return
    if not isinstance(config, dict):
        return
    if data.draw(st.integers(0, 9)) == 0:
        file.write_text(json.dumps(data.draw(ODD)))
        return
    key = data.draw(st.one_of(st.sampled_from(sorted(config)), st.text(max_size=5)))
    if data.draw(st.booleans()):
        config[key] = data.draw(ODD)
    else:
        config.pop(key, None)
    file.write_text(json.dumps(config))


def _tensors(data: Any, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except Exception:
        return
    name = data.draw(st.sampled_from(sorted(tensors) or [""]))
    if name not in tensors:
        return
    tensor = tensors.pop(name)
    what = data.draw(st.sampled_from(["drop", "rename", "shape", "value", "type", "add"]))
    if what == "rename":
        tensors[data.draw(st.one_of(NAMES, st.text(max_size=10)))] = tensor
    elif what == "shape":
        sizes = data.draw(st.lists(st.integers(0, 40), max_size=3))
        tensors[name] = torch.ones(sizes)
    elif what == "value":
        tensor.view(-1)[0] = data.draw(st.sampled_from([float("nan"), float("inf"), 1e38]))
        tensors[name] = tensor
    elif what == "type":
        kinds = [torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn]
        tensors[name] = tensor.to(data.draw(st.sampled_from(kinds)))
    elif what == "add":
        tensors[name] = tensor
        tensors[data.draw(NAMES)] = torch.ones(data.draw(st.lists(st.integers(0, 9), max_size=3)))
    save_file(tensors, file)


def _bytes(data: Any, folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if data.draw(st.booleans()) and content:
        content[at] = data.draw(st.integers(0, 255))
    else:
        del content[at:]
    if data.draw(st.integers(0, 5)) == 0:
        file.unlink()
    else:
        file.write_bytes(content)


def _beside(data: Any, folder: Path) -> None:
    file = folder / data.draw(FILES)
    what = data.draw(st.sampled_from(["bytes", "json", "tensors", "pickle"]))
    if what == "bytes":
        file.write_bytes(data.draw(st.binary(max_size=20)))
    elif what == "json":
        file.write_text(json.dumps({"model": data.draw(ODD)}))
    elif what == "tensors":
        save_file({data.draw(NAMES): torch.ones(data.draw(st.lists(st.integers(0, 9))))}, file)
    else:
        torch.save(data.draw(ODD), file)
