"""The gate on input-agnostic keys: it starts open, learns, and travels with the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import steps
import tiny
import torch
from safetensors.torch import load_file, save_file

from kvfix.data.units import Question
from kvfix.eval.mcq.answer import McqProtocol, answer, score_options
from kvfix.mlm.capture import extract
from kvfix.mlm.gate import FILE, KeyGate
from kvfix.mlm.intervene import Edit, intervene
from kvfix.mlm.load import Prompt, load_mlm
from kvfix.repair.queries import QueryKeys
from kvfix.repair.terms.gate import gate_penalty
from kvfix.repair.terms.mass import attention_mass
from kvfix.session import ModelOptions


@pytest.fixture
def load(checkpoint):
    """Load a tiny checkpoint by name."""
    return lambda name, **options: load_mlm(str(checkpoint(name)), **options)


def _prompts() -> list[Prompt]:
    return [
        Prompt((tiny.photo(60, 100),), "a cat"),
        Prompt((tiny.photo(60, 100, seed=1),), "dogs?"),
    ]


def _gate(mlm, encoded) -> KeyGate:
    tokens = encoded.images[0][0].layout.n_tokens
    torch.manual_seed(0)
    keys = torch.rand(mlm.n_layers, mlm.n_kv_heads, tokens) < 0.5
    return KeyGate(keys, [2, 1])


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_gate_starts_open_learns_and_is_exported(name, load, tmp_path: Path) -> None:
    mlm = load(name)
    mlm.base.requires_grad_(False)
    encoded = mlm.encode(_prompts())
    base = mlm.base(**encoded.inputs).logits
    gate = _gate(mlm, encoded)
    assert gate.layers == (1, 2)
    bias = gate()
    with intervene(mlm, encoded, [gate.edit(encoded, bias)]):
        logits = mlm.base(**encoded.inputs).logits
    torch.testing.assert_close(logits, base, atol=1e-4, rtol=1e-4)
    logits[:, -1, 0].sum().backward()
    assert gate.bias_EH.grad is not None and gate.bias_EH.grad.ne(0).all()
    with torch.no_grad():
        gate.bias_EH.copy_(torch.tensor([[-9.0, -1.0], [0.0, 2.0]]))
    assert gate()[0].tolist() == [0, 0] and gate()[1].tolist() == [-9, -1]
    penalty = gate_penalty(gate(), gate.layers)
    assert penalty.value.item() == pytest.approx((81 + 1 + 0 + 4) / 4)
    with torch.no_grad(), intervene(mlm, encoded, [gate.edit(encoded, gate())]):
        shut = mlm.base(**encoded.inputs).logits
    assert not torch.allclose(shut, base, atol=1e-3)
    gate.save(tmp_path)
    again = KeyGate.load(tmp_path)
    assert again.layers == gate.layers and torch.equal(again.keys_SHV, gate.keys_SHV)
    with torch.no_grad(), intervene(mlm, encoded, [again.edit(encoded, again())]):
        assert torch.equal(mlm.base(**encoded.inputs).logits, shut)


def test_a_gate_lowers_the_mass_that_it_reports(load) -> None:
    """`attention_mass` with the gate's bias is what the gated model attends with."""
    mlm = load("llava_onevision", attn="eager")
    encoded = mlm.encode(_prompts())
    gate = _gate(mlm, encoded)
    with torch.no_grad():
        gate.bias_EH.fill_(-2.0)
    with (
        torch.no_grad(),
        intervene(mlm, encoded, [gate.edit(encoded, gate())]),
        QueryKeys(mlm, encoded, layers=[1]) as reader,
    ):
        weights = mlm.base(**encoded.inputs, output_attentions=True).attentions
        of = reader.collect()[1][0]
    chosen = torch.zeros(mlm.n_kv_heads, len(of.real_L), dtype=torch.bool)
    chosen[:, encoded.images[0][0].positions_V] = gate.keys_SHV[1]
    mass = attention_mass(
        of.q_TQD,
        of.k_LHD,
        at_T=of.at_T,
        real_L=of.real_L,
        chosen_HL=chosen,
        scale=of.scale,
        bias_H=gate()[1],
    )
    inside = weights[1][0][:, of.at_T] * chosen.repeat_interleave(2, 0)[:, None]
    torch.testing.assert_close(mass, inside.sum(-1), atol=1e-5, rtol=1e-4)


def test_images_of_another_size_pass_the_gate(load) -> None:
    mlm = load("qwen2_5_vl")
    gate = _gate(mlm, mlm.encode(_prompts()))
    other = mlm.encode([Prompt((tiny.photo(40, 40),), "a cat")])
    with torch.no_grad():
        gate.bias_EH.fill_(-9.0)
        base = mlm.base(**other.inputs).logits
        with intervene(mlm, other, [gate.edit(other, gate())]):
            assert torch.equal(mlm.base(**other.inputs).logits, base)


def test_what_is_no_gate_is_refused(tmp_path: Path) -> None:
    keys = torch.ones(3, 2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"layers out of 0..2, each once, found \[3\]"):
        KeyGate(keys, [3])
    with pytest.raises(ValueError, match="boolean keys of layers"):
        KeyGate(keys.float(), [1])
    with pytest.raises(ValueError, match="at least one key to gate"):
        KeyGate(~keys, [1])
    with pytest.raises(FileNotFoundError, match=FILE):
        KeyGate.load(tmp_path)
    KeyGate(keys, [1]).save(tmp_path)
    tensors = load_file(tmp_path / FILE)
    save_file(tensors, tmp_path / FILE, metadata={"format": "9", "layers": "[1]"})
    with pytest.raises(ValueError, match=r"format 1, found tensors .* of format 9"):
        KeyGate.load(tmp_path)
    tensors["bias"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / FILE, metadata={"format": "1", "layers": "[1]"})
    with pytest.raises(ValueError, match=r"bias of \(1, 2\)"):
        KeyGate.load(tmp_path)


def test_every_command_holds_the_gate_open(load, checkpoint, tmp_path: Path) -> None:
    """Loaded as commands load it, a gated adapter answers and extracts as under its own edit."""
    folder, adapter = str(checkpoint("llava")), tmp_path / "adapter"
    tuned = steps.tuned(folder)
    tuned.model.save_pretrained(adapter)
    plain = ModelOptions(model=folder, adapter=str(adapter)).load()
    assert plain.adapter is not None
    before = plain.adapter.sha256
    image = tiny.photo(60, 100)
    question = Question("q_0", "q", "Counting", (image,), "how many?", ("one", "two"), 0)
    tokens = len(plain.encode([Prompt((image,), "a")]).images[0][0].positions_V)
    gate = KeyGate(torch.ones(plain.n_layers, plain.n_kv_heads, tokens, dtype=torch.bool), [0, 1])
    torch.nn.init.constant_(gate.bias_EH, -30.0)
    gate.save(adapter)
    held = ModelOptions(model=folder, adapter=str(adapter)).load()
    assert held.adapter is not None and held.adapter.sha256 != before

    def around(encoded):
        return intervene(plain, encoded, [gate.edit(encoded, gate().detach())])

    asked = ([question], McqProtocol())
    [without], [expected] = (score_options(plain, *asked, around=a) for a in (None, around))
    [found], [written] = score_options(held, *asked), answer(held, *asked)
    assert found.logprobs == expected.logprobs == written.logprobs != without.logprobs
    prompt = [Prompt((image,), "a cat")]
    text = {
        name: extract(mlm, prompt, sites=("value",), text=True, around=a)[0].text["value"][-1]
        for name, mlm, a in (("held", held, None), ("edit", plain, around), ("off", plain, None))
    }
    assert torch.equal(text["held"], text["edit"]) and not torch.equal(text["held"], text["off"])


def test_blocking_adds_to_the_gate(load, checkpoint, tmp_path: Path) -> None:
    """A diagnosis that blocks keys of a gated adapter changes that adapter, not the ungated one."""
    folder, adapter = str(checkpoint("llava")), tmp_path / "adapter"
    steps.tuned(folder).model.save_pretrained(adapter)
    plain = ModelOptions(model=folder, adapter=str(adapter)).load()
    prompt = Prompt((tiny.photo(60, 100),), "a cat")
    encoded = plain.encode([prompt])
    tokens = len(encoded.images[0][0].positions_V)
    gate = KeyGate(torch.ones(plain.n_layers, plain.n_kv_heads, tokens, dtype=torch.bool), [0])
    torch.nn.init.constant_(gate.bias_EH, -2.0)
    gate.save(adapter)
    held = ModelOptions(model=folder, adapter=str(adapter)).load()
    one_key = torch.arange(tokens) == 1
    block, own = Edit("text", one_key, scale=0.0), gate.edit(encoded, gate().detach())

    def values(mlm, edits):
        def around(batch):
            return intervene(mlm, batch, edits)

        [sample] = extract(mlm, [prompt], sites=("value",), text=True, around=around)
        return sample.text["value"]

    assert torch.equal(values(held, [block]), values(plain, [own, block]))
    assert torch.equal(values(held, []), values(plain, [own]))
    assert not torch.equal(values(held, [block]), values(plain, [block]))
    assert not torch.equal(values(held, [block]), values(held, []))


def test_a_gate_of_another_model_is_refused(checkpoint, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    steps.tuned(str(checkpoint("llava"))).model.save_pretrained(adapter)
    KeyGate(torch.ones(9, 2, 4, dtype=torch.bool), [0]).save(adapter)
    with pytest.raises(ValueError, match="expected a gate of"):
        ModelOptions(model=str(checkpoint("llava")), adapter=str(adapter)).load()
