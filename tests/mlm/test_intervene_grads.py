"""Gradients through edited attention: blocked keys, learned biases, checkpointing, LoRA."""

from __future__ import annotations

import pytest
import tiny
import torch
from micro_batches import (
    KV_HEADS,
    LAYERS,
    every_model,
    forward,
    image_at,
    keys_at,
    real_at,
    text_at,
    third_keys,
    three_prompts,
)
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import CheckpointError

from kvfix.mlm.intervene import Edit, intervene
from kvfix.mlm.load import Mlm
from kvfix.mlm.renamed import recompute_layers


@every_model
def test_a_blocked_key_and_its_value_get_no_gradient(name, attn, load):
    """From anywhere but the key's own row, which keeps it."""
    mlm = load(name, attn=attn)
    encoded = mlm.encode(three_prompts())
    keys = third_keys(encoded)
    attention, layer, head = mlm.layer(1).self_attn, 1, 1
    edits = [Edit(q, keys, scale=0, layers=[layer], heads=[head]) for q in ("text", "image")]
    key_BL = keys_at(encoded, keys)
    kept = {}

    def keep(at):
        return lambda module, args, output: (output.retain_grad(), kept.update({at: output}))[0]

    hooks = [
        attention.k_proj.register_forward_hook(keep("key")),
        attention.v_proj.register_forward_hook(keep("value")),
        attention.register_forward_hook(lambda m, a, output: kept.update(out=output[0])),
    ]
    for blocked in (True, False):
        with intervene(mlm, encoded, edits if blocked else []):
            mlm.model(**encoded.inputs)
        # From all queries of the edits but the keys' own rows.
        weight_BL1 = ((image_at(encoded) | text_at(encoded)) & ~key_BL)[..., None]
        (kept["out"] * weight_BL1).square().sum().backward()
        for site in ("key", "value"):
            grad_BLHD = kept[site].grad.unflatten(-1, (KV_HEADS, -1))
            assert not grad_BLHD.isnan().any()
            assert bool((grad_BLHD[key_BL][:, head] == 0).all()) == blocked
            assert (grad_BLHD[key_BL][:, 1 - head] != 0).any(-1).all()
            others_BL = image_at(encoded) & ~key_BL
            assert (grad_BLHD[others_BL] != 0).any(-1).all()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_with_all_edges_of_the_text_blocked_no_gradient_reaches_the_image(name, load):
    mlm = load(name)
    encoded = mlm.encode(three_prompts(1))
    for edits, reached in (([Edit("text", scale=0)], False), ([], True)):
        mlm.base.zero_grad()
        with intervene(mlm, encoded, edits):
            mlm.model(**encoded.inputs).logits[:, -1].square().sum().backward()
        grads = [p.grad for p in mlm.projector.parameters()]
        assert all(g is not None and bool(g.any()) == reached for g in grads)


@every_model
def test_a_bias_gets_the_gradient_that_numbers_show(name, attn, load):
    mlm = load(name, attn=attn)
    encoded = mlm.encode(three_prompts())
    keys, text_BL = third_keys(encoded), text_at(encoded)
    bias_SH = torch.nn.Parameter(torch.full((LAYERS, KV_HEADS), -0.5))
    target_BLC = torch.randn(*text_BL.shape, 8, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        logits = mlm.model(**encoded.inputs).logits.double()
        return (logits[..., :8] * target_BLC)[text_BL].mean()

    with intervene(mlm, encoded, [Edit(q, keys, bias_SH=bias_SH) for q in ("text", "image")]):
        loss().backward()
        loss().backward()  # a second pass is allowed, and adds up
        step = 0.05
        for layer in range(LAYERS):
            for head in range(KV_HEADS):
                sides = []
                for sign in (1, -1):
                    with torch.no_grad():  # read anew at every pass, as an optimiser needs
                        bias_SH[layer, head] += sign * step
                        sides.append(loss())
                        bias_SH[layer, head] -= sign * step
                slope = float(sides[0] - sides[1]) / (2 * step)
                assert abs(slope) > 1e-5
                assert float(bias_SH.grad[layer, head]) / 2 == pytest.approx(
                    slope, rel=0.05, abs=2e-4
                )


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_bias_of_zero_learns_from_the_base(name, load):
    mlm = load(name)
    encoded = mlm.encode(three_prompts())
    bias_SH = torch.zeros(LAYERS, KV_HEADS, requires_grad=True)
    base = forward(mlm, encoded).logits
    with intervene(mlm, encoded, [Edit("text", bias_SH=bias_SH)]):
        logits = mlm.model(**encoded.inputs).logits
    logits.square().sum().backward()
    real_BL = real_at(encoded)
    torch.testing.assert_close(logits[real_BL], base[real_BL], atol=2e-5, rtol=1e-4)
    assert (bias_SH.grad != 0).all()


@every_model
def test_checkpointing_gives_the_same_gradients(name, attn, load):
    grads = {}
    for checkpointing in (False, True):
        mlm = load(name, attn=attn)
        if checkpointing:
            recompute_layers(mlm.base)
            mlm.base.train()
        encoded = mlm.encode(three_prompts(2))
        bias_SH = torch.full((LAYERS, KV_HEADS), -1.0, requires_grad=True)
        keys = third_keys(encoded)
        edits = [Edit("text", keys, bias_SH=bias_SH), Edit("image", keys, scale=0)]
        with intervene(mlm, encoded, edits):
            mlm.model(**encoded.inputs, use_cache=False).logits.square().mean().backward()
        grads[checkpointing] = {
            n: p.grad for n, p in mlm.base.named_parameters() if p.grad is not None
        } | {"bias_SH": bias_SH.grad}
    assert grads[True].keys() == grads[False].keys()
    assert grads[True]["bias_SH"].all()
    torch.testing.assert_close(grads[True], grads[False], atol=1e-5, rtol=1e-3)


def test_checkpointing_cannot_run_backward_outside_unnoticed(load):
    mlm = load("llava")
    recompute_layers(mlm.base)
    mlm.base.train()
    encoded = mlm.encode(three_prompts(1))
    with intervene(mlm, encoded, [Edit("text", scale=0)]):
        loss = mlm.model(**encoded.inputs, use_cache=False).logits.square().mean()
    with pytest.raises(CheckpointError):
        loss.backward()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_lora_counts_inside_a_block(name, load):
    """What LoRA makes of the weights, merged into them, is the oracle."""
    tuned = load(name)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=tuned.lora_targets("lm"))
    model = get_peft_model(tuned.base, config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    tuned = Mlm(**{**vars(tuned), "model": model.eval()})
    encoded = tuned.encode(three_prompts())
    keys = third_keys(encoded)
    edits = [Edit("text", keys, scale=0), Edit("image", keys, scale=0, heads=[0])]
    plain, inside = forward(tuned, encoded).logits, forward(tuned, encoded, edits).logits
    merged = Mlm(**{**vars(tuned), "model": model.merge_and_unload()})
    expected, real_BL = forward(merged, encoded, edits).logits, real_at(encoded)
    torch.testing.assert_close(inside[real_BL], expected[real_BL], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(inside[real_BL], plain[real_BL], atol=1e-2)
