"""Loading adapters: under old names, of another base, empty, zero, with weights beside them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import adapter_folders as made
import pytest
import tiny
import torch
from adapter_checks import refusal
from commands import call
from safetensors.torch import load_file

from kvfix import adapters
from kvfix.adapters.naming import TODAY
from kvfix.adapters.targets import resolve
from kvfix.adapters.tensors import module_of
from kvfix.mlm.families import FAMILIES
from kvfix.mlm.load import load_mlm

ALL = (
    r"model\.language_model\.layers\.\d+\.self_attn\.[qv]_proj|"
    r"model\.(visual|vision_tower)\..*(qkv|q_proj|fc1)|"
    r"model\.multi_modal_projector\.linear_1"
)
OLD = [
    (family, number)
    for family in tiny.FAMILIES
    for number, naming in enumerate(FAMILIES[family].old_names)
    if ("vision_tower.", "model.vision_tower.") not in naming.prefixes  # DINOv2 alone
]


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "number"), OLD)
def test_an_adapter_under_old_names_is_the_adapter(family, number, load, checkpoint, tmp_path):
    naming = FAMILIES[family].old_names[number]
    folder = tmp_path / "adapter"
    expected = made.make(
        checkpoint(family), folder, target_modules=ALL, modules_to_save=["lm_head"]
    )
    made.rename(folder, naming.then)
    file = folder / "adapter_model.safetensors"
    old = sorted({module_of(x) for x in load_file(file) if ".lora_A" in x})
    assert any(naming.now(name) != name for name in old)
    for targets in (old, "|".join(map(re.escape, old))):
        made.change_config(folder, target_modules=targets)
        _same(made.logits(load(family, adapter=str(folder))), expected)


def test_patterns_of_an_old_adapter_are_read_under_its_names(load, checkpoint, tmp_path):
    """A regex that today's names do not match, ranks by old names, a layer left out."""
    naming = FAMILIES["qwen2_5_vl"].old_names[0]
    folder = tmp_path / "adapter"
    expected = made.make(
        checkpoint("qwen2_5_vl"),
        folder,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[0, 2],
        rank_pattern={r"model\.language_model\.layers\.2\..*": 3},
        alpha_pattern={"v_proj": 5},
    )
    made.rename(folder, naming.then)
    same = {
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [0, 2],
        "rank_pattern": {r"^model\.layers\.2\..*": 3},
        "layers_pattern": "layers",
    }
    made.change_config(folder, **same)
    _same(made.logits(load("qwen2_5_vl", adapter=str(folder))), expected)
    made.change_config(
        folder,
        target_modules=r"model\.layers\.\d\.self_attn\.[qv]_proj",
        exclude_modules=r"model\.layers\.1\..*",
        layers_to_transform=None,
        layers_pattern=None,
    )
    _same(made.logits(load("qwen2_5_vl", adapter=str(folder))), expected)


@pytest.mark.parametrize("asked", [
    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["model.language_model.layers.0.mlp.up_proj", "q_proj"],
     "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
])  # fmt: skip
def test_a_list_of_an_old_adapter_chooses_what_peft_chooses(asked, load, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = load("qwen2_5_vl").model
    modules = [name for name, _ in model.named_modules() if name]
    naming = FAMILIES["qwen2_5_vl"].old_names[0]
    old = dict(asked)
    old["target_modules"] = [naming.then(x) if "." in x else x for x in asked["target_modules"]]
    resolved = resolve(old, modules, naming, where=tmp_path)
    assert resolve(asked, modules, TODAY, where=tmp_path) == asked

    def chosen(config: dict) -> set[str]:
        wrapped = get_peft_model(load("qwen2_5_vl").model, LoraConfig(**config))
        return {n.split(".lora_A")[0] for n, _ in wrapped.named_modules() if ".lora_A" in n}

    assert chosen(resolved) == chosen(asked) != set()


# --- regexes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_regex_of_an_adapter_never_runs_in_peft(key, load, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    expected = made.make(checkpoint("llava"), folder, target_modules=["q_proj"])
    bad = r"(.*)*="
    value = {bad: 2} if key == "rank_pattern" else bad
    monkeypatch.setattr("kvfix.adapters.patterns.SECONDS", 0.2)
    made.change_config(folder, **{key: value})
    if key == "target_modules":
        assert "expected target_modules that the model has" in refusal(load, "llava", folder)
    else:
        _same(made.logits(load("llava", adapter=str(folder))), expected)
    slow = r"(.|.)*(.|..)*(?:.|...)*\.\1="  # `regex` has no short way through this one
    made.change_config(folder, **{key: {slow: 2} if key == "rank_pattern" else slow})
    assert "a repeat inside a repeat explodes" in refusal(load, "llava", folder)


# --- empty, zero, not finite ----------------------------------------------------------------------


def test_layers_without_gradient_may_be_zero_but_not_all(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder)

    def zero(part: str):
        return lambda x: {n: t.mul(0) if part in n else t for n, t in x.items()}

    made.change_tensors(folder, zero("layers.2.self_attn.q_proj.lora_B"))
    load("llava", adapter=str(folder))
    for part in ("lora_B", "lora_A"):
        made.make(checkpoint("llava"), folder)
        made.change_tensors(folder, zero(part))
        assert "found every update all zero" in refusal(load, "llava", folder)


def test_saved_modules_and_tokens_are_enough(load, checkpoint, tmp_path):
    for number, more in enumerate(
        ({"modules_to_save": ["lm_head"]}, {"trainable_token_indices": {"embed_tokens": [5]}})
    ):
        folder = tmp_path / str(number)
        made.make(checkpoint("llava"), folder, **more)
        made.change_tensors(
            folder, lambda x: {n: t.mul(0) if "lora_B" in n else t for n, t in x.items()}
        )
        load("llava", adapter=str(folder))


def test_dora_with_the_base_magnitudes_and_zero_updates_does_nothing(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder, use_dora=True)
    base = load("llava").model.state_dict()

    def untrained(tensors):
        out = {}
        for name, tensor in tensors.items():
            module = name.removeprefix(made.PREFIX).split(".lora_")[0]
            if "magnitude" in name:
                tensor = base[f"{module}.weight"].norm(dim=1)
            out[name] = tensor.mul(0) if "lora_B" in name else tensor
        return out

    made.change_tensors(folder, untrained)
    assert "found every update all zero" in refusal(load, "llava", folder)
    made.change_tensors(
        folder, lambda x: {n: t * 1.1 if "magnitude" in n else t for n, t in x.items()}
    )
    load("llava", adapter=str(folder))


def test_what_zero_3_leaves_is_called_empty(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder)
    for change in (
        lambda x: {n: t.new_zeros(0) for n, t in x.items()},
        lambda x: {n: t.new_zeros(0) if "layers.1" in n else t for n, t in x.items()},
        lambda x: {},
    ):
        made.change_tensors(folder, change)
        text = refusal(load, "llava", folder)
        assert "EMPTY" in text and '"stage3_gather_16bit_weights_on_model_save": true' in text
        assert "zero_to_fp32.py" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_a_diverged_training_leaves_is_named(value, load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava"), folder)

    def spoil(tensors):
        tensors[next(n for n in tensors if "layers.1.self_attn.v_proj.lora_A" in n)][0, 0] = value
        return tensors

    made.change_tensors(folder, spoil)
    text = refusal(load, "llava", folder)
    assert "NaN or infinity in" in text and "layers.1.self_attn.v_proj.lora_A" in text


# --- where it is ----------------------------------------------------------------------------------


def test_the_one_adapter_in_a_subfolder_is_used_and_said(load, checkpoint, tmp_path):
    expected = made.make(checkpoint("llava"), tmp_path / "outer" / "reason")
    with pytest.warns(adapters.AdapterWarning, match="in its subfolder reason is used"):
        mlm = load("llava", adapter=str(tmp_path / "outer"))
    _same(made.logits(mlm), expected)
    assert mlm.adapter.folder.name == "reason" and len(mlm.warnings) == 1
    shutil.copytree(tmp_path / "outer" / "reason", tmp_path / "outer" / "count")
    text = refusal(load, "llava", tmp_path / "outer")
    assert "found 2 in subfolders: count, reason" in text


def test_a_training_folder_has_its_own_adapter_beside_its_checkpoints(load, checkpoint, tmp_path):
    folder = tmp_path / "run"
    made.make(checkpoint("llava"), folder / "checkpoint-10", seed=1)
    expected = made.make(checkpoint("llava"), folder)
    mlm = load("llava", adapter=str(folder))
    _same(made.logits(mlm), expected) and mlm.warnings == ()


def test_other_folders_are_named_for_what_they_are(load, checkpoint, tmp_path):
    assert "found config.json: a whole model" in refusal(load, "llava", checkpoint("llava"))
    (tmp_path / "bare").mkdir()
    assert "found no such file in it" in refusal(load, "llava", tmp_path / "bare")
    assert "found neither" in refusal(load, "llava", tmp_path / "nowhere")


def test_a_pickle_is_converted_by_the_command_that_is_given(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    expected = made.make(checkpoint("llava"), folder)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    text = refusal(load, "llava", folder)
    command = text.partition("convert it once: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    _same(made.logits(load("llava", adapter=str(folder))), expected)


def test_a_hub_id_is_fetched(load, checkpoint, tmp_path, monkeypatch):
    from fnmatch import fnmatch

    root = tmp_path / "repository"
    expected = made.make(checkpoint("llava"), root)
    (root / "optimizer.pt").write_bytes(b"large")
    (root / "checkpoint-5").mkdir()
    (root / "checkpoint-5" / "optimizer.pt").write_bytes(b"large")
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        out = tmp_path / "cache" / "models--o--n" / "snapshots" / "0123abc"
        asked.append(name)
        for path in root.rglob("*"):
            inside = str(path.relative_to(root))
            if (
                path.is_file()
                and any(fnmatch(inside, p) for p in allow_patterns)
                and not any(fnmatch(inside, p) for p in ignore_patterns)
            ):
                (out / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, out / inside)
        return str(out)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    mlm = load("llava", adapter="owner/name")
    _same(made.logits(mlm), expected)
    assert mlm.adapter.revision == "0123abc" and set(asked) == {"owner/name"}
    cache = tmp_path / "cache"
    assert not list(cache.rglob("optimizer.pt"))
    shutil.rmtree(cache)
    inner = root / "reason"
    inner.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (root / name).rename(inner / name)
    for asking in ("owner/name", "owner/name/reason"):
        mlm = load("llava", adapter=asking)
        _same(made.logits(mlm), expected)
        assert mlm.adapter.folder.name == "reason" and mlm.adapter.revision == "0123abc"
        shutil.rmtree(cache)


def test_a_hub_id_that_is_not_there_is_one_line(load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "expected a folder or a hub adapter" in refusal(load, "llava", Path("nobody/nothing"))


# --- which base -----------------------------------------------------------------------------------


def test_an_adapter_of_other_weights_is_refused_unless_forced(load, checkpoint, tmp_path):
    other = tiny.build("llava", tmp_path / "other", seed=1)
    folder = tmp_path / "adapter"
    made.make(other, folder)
    (folder / "training.json").write_text(
        json.dumps({"model": {"id": "mine", "sha256": load_mlm(str(other)).sha256}})
    )
    assert load_mlm(str(other), adapter=str(folder)).warnings == ()
    text = refusal(load, "llava", folder)
    assert "expected an adapter of" in text and "--force-adapter" in text and "'mine'" in text
    with pytest.warns(adapters.AdapterWarning, match="loaded all the same"):
        mlm = load("llava", adapter=str(folder), force_adapter=True)
    assert "is not an adapter of" in mlm.warnings[0]
    inner = folder / "checkpoint-3"
    inner.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, inner / name)
    assert "expected an adapter of" in refusal(load, "llava", inner)


def test_an_adapter_of_another_class_is_refused_though_its_shapes_fit(load, checkpoint, tmp_path):
    folder = tmp_path / "adapter"
    made.make(checkpoint("llava_onevision"), folder)
    assert "LlavaOnevisionForConditionalGeneration" in refusal(load, "qwen2_5_vl", folder)
    # Saved with a task type, an adapter names a folder only.
    made.change_config(
        folder, auto_mapping=None, base_model_name_or_path=str(checkpoint("llava_onevision"))
    )
    assert "LlavaOnevisionForConditionalGeneration" in refusal(load, "qwen2_5_vl", folder)


@pytest.mark.parametrize(
    ("said", "same"),
    [
        ("llava", True),
        ("llava/", True),
        ("somebody/llava-hf", True),
        ("C:\\models\\LLaVA", True),
        ("/root/.cache/huggingface/hub/models--o--llava/snapshots/0123abc", True),
        ("unsloth/llava-unsloth-bnb-4bit", True),
        ("llava-hf/llava-1.5-7b-hf", False),
        ("llava2", False),
        (None, True),
    ],
)
def test_another_name_of_the_base_is_a_warning(said, same, checkpoint, tmp_path):
    base = tmp_path / "llava"
    shutil.copytree(checkpoint("llava"), base)
    made.make(base, tmp_path / "adapter")
    made.change_config(tmp_path / "adapter", base_model_name_or_path=said)
    found = adapters.find(str(tmp_path / "adapter"))
    from kvfix.checkpoint.folder import find

    checked = adapters.check_base(found, find(str(base), weights=True), name=str(base), force=False)
    assert (checked.warnings == ()) == same


def test_a_warning_is_shown_and_recorded(checkpoint, tmp_path):
    made.make(checkpoint("llava"), tmp_path / "adapter")
    made.change_config(tmp_path / "adapter", base_model_name_or_path="other/model")
    ended = call(
        "eval", "--model", checkpoint("llava"), "--adapter", tmp_path / "adapter", "--limit", 1,
        "--task", "cosegmentation", "--site", "vision", "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "was trained on 'other/model'" in " ".join(ended.err.split())
    [text] = json.loads((tmp_path / "run" / "run.json").read_text())["model"]["warnings"]
    assert "was trained on 'other/model'" in text


# --- trained weights beside it --------------------------------------------------------------------


# --- added tokens ---------------------------------------------------------------------------------
