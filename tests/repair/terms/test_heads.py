"""Heads: what they compute, that every parameter is touched without samples, and frozen ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kvfix.repair.terms.heads import MaskHead, Temperature, TextProjection, check_trained


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _mask_head(**options) -> MaskHead:
    return MaskHead(4, 3, generator=_generator(), **options)


@pytest.mark.parametrize("shared", [False, True])
def test_mask_head_is_linear_and_has_a_weight_a_layer_unless_shared(shared: bool) -> None:
    head = _mask_head(outputs=2, shared=shared)
    assert head.weight.shape == (1 if shared else 3, 2, 4) and head.weight.ne(0).all()
    with torch.no_grad():
        head.bias.normal_(generator=_generator())
    v = torch.randn(3, 5, 4, generator=_generator())
    logits = head(v)
    assert logits.shape == (3, 5, 2)
    for layer in range(3):
        own = 0 if shared else layer
        by_hand = nn.functional.linear(v[layer], head.weight[own], head.bias[own])
        torch.testing.assert_close(logits[layer], by_hand)
    again = _mask_head(outputs=2, shared=shared)
    assert torch.equal(again.weight, head.weight)  # the same seed
    assert head(v.bfloat16()).dtype == torch.float32


def test_text_projection_starts_as_the_plain_cosine() -> None:
    head = TextProjection(4, 3, temperature=0.07)
    t = torch.randn(3, 2, 4, generator=_generator())
    torch.testing.assert_close(head(t), nn.functional.normalize(t, dim=-1) / 0.07)
    with torch.no_grad():
        head.weight[1] = 2 * torch.eye(4).flip(0)
    turned = nn.functional.normalize(t.flip(-1), dim=-1) / 0.07
    torch.testing.assert_close(head(t)[1], turned[1])


def test_temperature_is_learned_and_never_stuck_at_its_bound() -> None:
    head = Temperature(0.07)
    assert head(torch.ones(1)).item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        head.raw_temperature.fill_(-9.0)
    value = head(torch.ones(1))
    assert value.item() == pytest.approx(1 / (0.01 + math.exp(-9)))
    value.sum().backward()
    assert head.raw_temperature.grad is not None and head.raw_temperature.grad != 0
    for wrong in (0.01, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"temperature above 0.01"):
            Temperature(wrong)


HEADS = {
    "mask": lambda: _mask_head(outputs=2),
    "mask_shared": lambda: _mask_head(shared=True),
    "text": lambda: TextProjection(4, 3),
    "text_shared": lambda: TextProjection(4, 3, shared=True),
    "temperature": lambda: Temperature(),
}


@pytest.mark.parametrize("name", HEADS)
def test_dummy_is_zero_touches_every_parameter_and_runs_forward_once(name: str) -> None:
    head = HEADS[name]()
    calls = []
    head.register_forward_hook(lambda module, args, output: calls.append(1))
    zero = head.dummy()
    assert zero.item() == 0 and zero.ndim == 0 and calls == [1]
    zero.backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_a_frozen_head_and_one_outside_the_optimizer_are_caught() -> None:
    heads = nn.ModuleDict({"mask": _mask_head(), "text": TextProjection(4, 3)})
    everything = torch.optim.AdamW(heads.parameters())
    check_trained(heads, everything.param_groups)
    part = torch.optim.AdamW(heads["mask"].parameters())
    with pytest.raises(ValueError, match=r"text.weight: expected a parameter of the optimizer"):
        check_trained(heads, part.param_groups)
    heads["mask"].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"mask.bias: expected a trainable .* found it frozen"):
        check_trained(heads, everything.param_groups)
