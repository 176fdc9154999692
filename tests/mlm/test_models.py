"""Loading, encoding, and what each bad input is answered with."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from kvfix.mlm.capture import extract
from kvfix.mlm.load import FAMILIES, Prompt, load_mlm


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of a tiny checkpoint that a test may spoil."""
    return lambda name="llava": shutil.copytree(checkpoint(name), tmp_path / name)


def _spoil(folder: Path, file: str, **changes) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _one_prompt() -> list[Prompt]:
    return [Prompt((tiny.photo(60, 100),), "a cat")]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_mlm_says_what_it_is(name, load, checkpoint):
    mlm = load(name)
    assert (mlm.n_layers, mlm.n_heads, mlm.n_kv_heads, mlm.head_dim) == (3, 4, 2, 8)
    assert mlm.family is FAMILIES[name]
    assert mlm.family.model_type == name
    assert (mlm.dtype, mlm.device.type, mlm.revision) == (torch.float32, "cpu", None)
    assert not mlm.model.training
    # Qwen language models have key biases, Llama's do not.
    assert (mlm.key_bias(1) is not None) == (name in ("llava_onevision", "qwen2_5_vl"))
    weights = (checkpoint(name) / "model.safetensors").read_bytes()
    assert mlm.sha256 == hashlib.sha256(weights).hexdigest()


def test_sha256_of_shards_is_that_of_one_after_the_other(copy):
    folder = copy()
    mlm = load_mlm(str(folder))
    (folder / "model.safetensors").unlink()
    mlm.model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    joined = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    again = load_mlm(str(folder))
    assert again.sha256 == joined
    assert all(
        torch.equal(a, b)
        for a, b in zip(mlm.model.parameters(), again.model.parameters(), strict=True)
    )


# --- encoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_order_and_text_end(name, side, load):
    mlm = load(name)
    image = tiny.photo(60, 100)
    prompts = [
        Prompt((image,), "assistant"),  # also a word of the template
        Prompt((image, image), "dog?", prefix="Look: "),
        Prompt((image,), ""),
        Prompt((image,), "a\nlonger text, so that all others are padded"),
    ]
    encoded = mlm.encode(prompts, padding_side=side)
    tokenizer = mlm.processor.tokenizer
    ids_BL, mask_BL = encoded.inputs["input_ids"], encoded.inputs["attention_mask"]
    assert mask_BL.min() == 0
    for sample, prompt in enumerate(prompts):
        end = int(encoded.text_end_B[sample])
        assert mask_BL[sample, end] == 1
        after = tokenizer.decode(ids_BL[sample, end + 1 :][mask_BL[sample, end + 1 :].bool()])
        assert after == "<|im_end|>\n<|im_start|>assistant\n"
        before = tokenizer.decode(ids_BL[sample, : end + 1])
        assert before.endswith(prompt.text)
        order = encoded.order_texts[sample]
        assert order.startswith("<|im_start|>system") and order.endswith(prompt.text + after)
        assert order.count(mlm.processor.image_token) == len(prompt.images)
        if prompt.prefix:
            assert order.index(prompt.prefix) < order.index(mlm.processor.image_token)


def test_text_end_where_the_template_trims_and_adds_no_special_token(load):
    mlm = load("llava")
    mlm.processor.chat_template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image>\n{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
    )
    encoded = mlm.encode([Prompt((tiny.photo(60, 60),), "  a cat ")])
    end = int(encoded.text_end_B[0])
    ids_L = encoded.inputs["input_ids"][0]
    assert mlm.processor.tokenizer.decode(ids_L[end + 1 :]) == " ASSISTANT:"
    assert mlm.processor.tokenizer.decode(ids_L[: end + 1]).endswith("a cat")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_encoded_inputs_also_generate(name, load):
    """Left padding must not change what is generated."""
    mlm = load(name)
    prompts = [*_one_prompt(), Prompt((tiny.photo(150, 70),), "a much longer question?")]
    options = {"max_new_tokens": 4, "do_sample": False}
    together = mlm.model.generate(**mlm.encode(prompts).inputs, **options)[:, -4:]
    for number, prompt in enumerate(prompts):
        alone = mlm.model.generate(**mlm.encode([prompt]).inputs, **options)[0, -4:]
        assert torch.equal(together[number], alone)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "expected at least one prompt, found none"),
        ([Prompt((), "hello")], r"prompt 0 \('hello'\): expected at least one image, found none"),
        ([Prompt((Image.new("L", (9, 9)),), "x")], "expected RGB PIL images, found L"),
        ([Prompt((Image.new("RGB", (60, 60)),), "an <image> here")], "placeholder '<image>'"),
        ([Prompt((Image.new("RGB", (60, 60)),), "x", prefix="<image>")], "placeholder '<image>'"),
    ],
)
def test_bad_prompts_are_refused(prompts, message, load):
    with pytest.raises(ValueError, match=message):
        extract(load("llava"), prompts)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>"])
def test_qwen_placeholders_are_refused(token, load):
    with pytest.raises(ValueError, match=r"expected text without the placeholder"):
        load("qwen2_5_vl").encode([Prompt((tiny.photo(60, 60),), f"say {token}")])


def test_padding_side_and_template_are_checked(load):
    mlm = load("llava")
    with pytest.raises(ValueError, match=r"expected padding_side 'left' or 'right', found 'both'"):
        mlm.encode(_one_prompt(), padding_side="both")
    mlm.processor.chat_template = "{% for m in messages %}<image> hi{% endfor %}"
    with pytest.raises(ValueError, match=r"found one that drops or rewrites it"):
        mlm.encode(_one_prompt())


def test_processor_and_config_that_disagree_are_named(copy):
    folder = copy("llava_next")
    _spoil(folder, "config.json", image_grid_pinpoints=[[48, 48]])
    with pytest.raises(ValueError, match=r"processor_config.json: expected image_grid_pinpoints"):
        load_mlm(str(folder))


def test_siglip_tower_with_a_cls_to_drop_is_refused(copy):
    folder = copy("llava_siglip")
    for file in ("config.json", "processor_config.json"):
        _spoil(folder, file, vision_feature_select_strategy="default")
    with pytest.raises(ValueError, match=r"set the strategy to 'full'"):
        load_mlm(str(folder))


# --- loading --------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder or a hub id .*, found neither"):
        load_mlm(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"checkpoint folder with config.json"):
        load_mlm(str(tmp_path))


def test_an_unknown_hub_id_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"no such folder, and the hub did not") as error:
        load_mlm("nobody/nothing")
    assert "\n" not in str(error.value)


def test_an_unknown_model_type(copy):
    folder = copy()
    _spoil(folder, "config.json", model_type="gpt2")
    expected = "expected model_type to be one of gemma3, .*llava, llava_next, .*, found 'gpt2'"
    with pytest.raises(ValueError, match=expected):
        load_mlm(str(folder))


def test_an_unknown_language_model(copy):
    folder = copy()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    _spoil(folder, "config.json", text_config=text | {"model_type": "olmo2"})
    with pytest.raises(
        ValueError, match=r"expected a language model out of .*llama.*, found 'olmo2'"
    ):
        load_mlm(str(folder))


def test_a_folder_without_weights(copy):
    folder = copy()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected weights, found no model.safetensors"):
        load_mlm(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ValueError, match=r"found pytorch_model.bin; pickles are not loaded"):
        load_mlm(str(folder))


def test_weights_with_holes(copy):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.1.self_attn.v_proj" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"found 1 missing or misshapen: .*layers.1.self_attn.v_proj"
    ):
        load_mlm(str(folder))


def test_a_truncated_weight_file(copy):
    folder = copy()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected readable safetensors"):
        load_mlm(str(folder))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json"])
def test_a_processor_that_lacks_a_file(file, copy):
    folder = copy()
    (folder / file).unlink()
    with pytest.raises(ValueError, match=r"expected a (chat template|processor|fast tokenizer)"):
        load_mlm(str(folder))


def test_options_are_checked(load):
    with pytest.raises(
        ValueError, match=r"expected quant to be 'nf4', 'int8' or None, found 'fp4'"
    ):
        load("llava", quant="fp4")
    with pytest.raises(ValueError, match=r"expected random_weights alone, found it with quant"):
        load("llava", quant="nf4", random_weights=0)


def test_dtype_auto_is_the_checkpoints(tmp_path):
    folder = tiny.build("llava", tmp_path, dtype=torch.bfloat16)
    assert load_mlm(str(folder)).dtype == torch.bfloat16
    assert load_mlm(str(folder), dtype=torch.float32).dtype == torch.float32
    assert load_mlm(str(folder), random_weights=0).dtype == torch.bfloat16


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_random_weights_are_fresh_everywhere_and_come_from_the_seed(name, load, checkpoint):
    state = torch.random.get_rng_state()
    one, same, other = (load(name, random_weights=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    trained = load(name)
    for (key, a), b, c, d in zip(
        one.model.named_parameters(),
        same.model.parameters(),
        other.model.parameters(),
        trained.model.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, d), key
        if a.std() > 0:  # biases and norms start at a constant
            assert not torch.equal(a, c), key
    assert one.sha256 == same.sha256
    assert len({one.sha256, other.sha256, trained.sha256}) == 3
    extract(one, _one_prompt())


def test_random_weights_need_no_weight_file(copy):
    folder = copy()
    (folder / "model.safetensors").unlink()
    assert load_mlm(str(folder), random_weights=0).n_layers == 3


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantised_language_model_but_not_tower(quant, load):
    import bitsandbytes as bnb

    mlm = load("llava_wide", quant=quant, dtype=torch.float32)
    kind = bnb.nn.Linear4bit if quant == "nf4" else bnb.nn.Linear8bitLt
    quantised = {name for name, module in mlm.model.named_modules() if isinstance(module, kind)}
    assert len(quantised) == 3 * 7
    assert all(name.startswith(mlm.family.lm) for name in quantised)
    plain, small = extract(load("llava_wide"), _one_prompt()), extract(mlm, _one_prompt())
    full, value = plain[0].images[0]["value"], small[0].images[0]["value"]
    # The towers agree but for int8's half precision, the language models roughly.
    assert torch.cosine_similarity(full.flatten(), value.flatten().to(full), dim=0) > 0.95


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_local_folder_needs_no_network(name, load, monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: asked.append(to))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *to, **more: asked.append(to))
    load(name)
    load(name, random_weights=0)
    assert not asked


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def adapter(load, tmp_path):
    """Write an adapter for the tiny llava; returns its folder."""

    def write(*, zero: bool = False, drop: str | None = None, add: str | None = None) -> Path:
        mlm = load("llava")
        targets = mlm.lora_targets("lm", "projector")
        model = get_peft_model(mlm.base, LoraConfig(r=2, target_modules=targets))
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        if not zero:
            tensors = {k: torch.randn_like(v) if "lora_B" in k else v for k, v in tensors.items()}
        if drop:
            tensors.pop(next(name for name in tensors if drop in name))
        if add:
            tensors[add] = torch.ones(2, 2)
        save_file(tensors, file)
        return folder

    return write


def test_an_adapter_changes_values_and_is_hashed(load, adapter):
    folder = adapter()
    plain, tuned = load("llava"), load("llava", adapter=str(folder))
    one, other = (extract(mlm, _one_prompt())[0].images[0] for mlm in (plain, tuned))
    assert torch.equal(one["vision"], other["vision"])
    assert not torch.allclose(one["value"], other["value"])
    file = folder / "adapter_model.safetensors"
    assert tuned.adapter.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert plain.adapter is None and tuned.sha256 == plain.sha256
    assert tuned.dtype == plain.dtype


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"zero": True}, "expected trained weights, found every update all zero, .*lora_B"),
        (
            {"drop": "layers.1.self_attn.v_proj.lora_A"},
            "found 1 missing: .*layers.1.self_attn.v_proj",
        ),
        (
            {"add": "base_model.model.model.layers.0.lora_A.weight"},
            "found 1 unexpected: 'base_model",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(spoilt, message, load, adapter):
    with pytest.raises(ValueError, match=message):
        load("llava", adapter=str(adapter(**spoilt)))


def test_an_adapter_of_another_model_or_kind_is_refused(load, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected an adapter folder or a hub id"):
        load("llava", adapter=str(tmp_path / "none"))
    folder = adapter()
    with pytest.raises(ValueError, match=r"found"):
        load("qwen2_5_vl", adapter=str(folder))
    _spoil(folder, "adapter_config.json", peft_type="PREFIX_TUNING")
    with pytest.raises(ValueError, match=r"expected a LORA adapter, found 'PREFIX_TUNING'"):
        load("llava", adapter=str(folder))
    _spoil(folder, "adapter_config.json", peft_type="LORA")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"expected adapter_model.safetensors"):
        load("llava", adapter=str(folder))
