"""Loss terms on tiny models with LoRA: gradients, empty batches, planted failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import steps
import tiny
import torch
from steps import LAYER, LAYER_TERMS, VALUE_TERMS

from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.extras import Extras

TERMS = (*LAYER_TERMS, "distil", "kl")
# Hinges that bind: a floor above any r, a ceiling of nothing.
BINDING = {"dependence": {"floor": 1.0}, "mass": {"ceiling": 0.0}}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", LAYER_TERMS)
def test_gradient_reaches_the_chosen_layer_and_earlier_ones(name, family, checkpoint) -> None:
    mlm = steps.tuned(checkpoint(family), parts=("lm", "projector"))
    losses = steps.only(name, **BINDING.get(name, {}))
    # OneVision tiles an image only when it is alone: another size than two in one prompt.
    given = steps.prompts(images=2 if name in ("correspondence", "evidence") else 1)
    heads = steps.heads_of(mlm, losses)
    step = steps.make_step(mlm, losses, given, steps.extras(mlm, given))
    mean = steps.mean_of(name, losses, step, heads)
    assert mean.value > 0 and mean.weight > 0 and not mean.weight.requires_grad
    mean.value.backward()
    grads = {n: p.grad for n, p in mlm.model.named_parameters() if p.requires_grad}
    for layer in range(mlm.n_layers):
        for target in ("k_proj", "v_proj"):
            own = [
                grad
                for n, grad in grads.items()
                if f"language_model.layers.{layer}.self_attn.{target}.lora_" in n
            ]
            reached = [grad is not None and bool(grad.any()) for grad in own]
            read = "v_proj" if name in VALUE_TERMS else "k_proj"
            expected = layer < LAYER or (layer == LAYER and target == read)
            assert reached == [expected] * 2, (layer, target)
    projector = [grad for n, grad in grads.items() if f"{mlm.family.projector}." in n]
    assert projector and all(grad is not None and grad.any() for grad in projector)
    for parameter in heads.parameters():
        assert parameter.grad is not None and parameter.grad.any()


@pytest.mark.parametrize("name", ["distil", "kl"])
def test_gradient_of_answer_terms_reaches_every_layer(name, checkpoint) -> None:
    mlm = steps.tuned(checkpoint("qwen2_5_vl"))
    losses, given = steps.only(name), steps.prompts()
    step = steps.make_step(mlm, losses, given, steps.extras(mlm, given))
    mean = steps.mean_of(name, losses, step, steps.heads_of(mlm, losses))
    assert mean.value > 0
    mean.value.backward()
    for n, parameter in mlm.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), n


def test_anchors_are_zero_while_the_adapter_does_nothing(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava_onevision"), spread=0.0)
    losses, given = steps.only("kl", "gram"), steps.prompts()
    step = steps.make_step(mlm, losses, given, steps.extras(mlm, given))
    for name in ("kl", "gram"):
        assert steps.mean_of(name, losses, step, steps.heads_of(mlm, losses)).value.abs() < 1e-9


def test_kl_is_taken_where_it_is_asked_for(checkpoint) -> None:
    mlm, given = steps.tuned(checkpoint("llava")), steps.prompts()
    weights = {}
    for at in ("text", "answer", "both"):
        losses = steps.only("kl", at=at)
        step = steps.make_step(mlm, losses, given, steps.extras(mlm, given))
        weights[at] = float(steps.mean_of("kl", losses, step, steps.heads_of(mlm, losses)).weight)
    assert weights["answer"] == 2 and weights["text"] > 2
    assert weights["both"] == weights["text"] + 2


@pytest.mark.parametrize("name", TERMS)
def test_each_term_learns(name, checkpoint) -> None:
    """Adapter and heads alone make the loss fall; it is not at its floor from the start."""
    mlm = steps.tuned(checkpoint("llava"))
    losses = steps.only(name, **BINDING.get(name, {}))
    given = steps.prompts()
    knows, heads = steps.extras(mlm, given), steps.heads_of(mlm, losses)
    trained = [p for p in mlm.model.parameters() if p.requires_grad] + list(heads.parameters())
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    found = []
    for _ in range(8):
        step = steps.make_step(mlm, losses, given, knows)
        value = steps.mean_of(name, losses, step, heads).value
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    assert found[-1] < 0.95 * found[0], found


# --- batches in which a term finds nothing --------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_without_targets_gives_zero_with_a_graph(name, checkpoint) -> None:
    """Text-only samples with a stand-in image: every head still runs once, gradients are zero."""
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only(name), steps.prompts()
    heads = steps.heads_of(mlm, losses)
    calls = []
    for head in heads.by_term.values():
        head.register_forward_hook(lambda module, args, output: calls.append(1))
    nothing = [Extras(stand_in=True)] * len(given)
    step = steps.make_step(mlm, losses, given, nothing)
    if name == "kl":
        none = torch.zeros_like(step.rows.text_R)
        step = replace(step, rows=step.rows._replace(text_R=none))
    mean = steps.mean_of(name, losses, step, heads)
    assert mean.value == 0 and mean.weight == 0 and mean.value.requires_grad
    mean.value.backward()
    assert len(calls) == len(list(heads.by_term))
    for parameter in heads.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert not any(p.grad.any() for p in mlm.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["mask", "text_value"])
def test_an_empty_mask_counts_for_nothing(name, checkpoint) -> None:
    """Void everywhere, or (for an expression) no cell that it names."""
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only(name), steps.prompts()
    heads, knows = steps.heads_of(mlm, losses), steps.extras(mlm, given)
    target = knows[0].masks[0]
    empty = target._replace(valid_HW=0 * target.valid_HW)
    if name == "text_value":
        empty = target._replace(share_HW=0 * target.share_HW)
    one = [knows[0], replace(knows[1], masks=(empty,))]
    none = [replace(knows[0], masks=(empty,)), Extras()]
    step = steps.make_step(mlm, losses, given, one)
    assert steps.mean_of(name, losses, step, heads).weight == 1
    torch.testing.assert_close(
        steps.mean_of(name, losses, step, heads),
        steps.mean_of(name, losses, replace(step, extras=[knows[0], Extras()]), heads),
    )
    mean = steps.mean_of(name, losses, replace(step, extras=none), heads)
    assert mean.value == 0 and mean.weight == 0 and mean.value.requires_grad


@pytest.mark.parametrize("name", [*VALUE_TERMS, "distil", "kl", "mass"])
def test_two_micro_batches_pool_to_the_whole(name, checkpoint) -> None:
    """Totals and weights of two halves add up to those of the batch."""
    mlm = steps.tuned(checkpoint("qwen2_5_vl"))
    losses, given = steps.only(name), steps.prompts()
    heads, knows = steps.heads_of(mlm, losses), steps.extras(mlm, given)
    knows[1] = replace(knows[1], matches=(), masks=knows[1].masks * 2)  # uneven halves
    whole = steps.mean_of(name, losses, steps.make_step(mlm, losses, given, knows), heads)
    halves = []
    for n in (0, 1):
        own = knows[n]
        own = replace(own, choice=own.choice._replace(row=0))
        step = steps.make_step(mlm, losses, given[n : n + 1], [own])
        halves.append(steps.mean_of(name, losses, step, heads))
    total = sum(half.total for half in halves)
    weight = sum(half.weight for half in halves)
    torch.testing.assert_close(weight, whole.weight)
    torch.testing.assert_close(total, whole.total, atol=1e-4, rtol=1e-3)


# --- planted failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYER_TERMS[:-1])
def test_features_without_a_gradient_are_refused(name, checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only(name), steps.prompts()
    step = steps.make_step(mlm, losses, given, steps.extras(mlm, given), grad=False)
    with pytest.raises(ValueError, match=r"features with a gradient, found none: use Capture\(gra"):
        steps.mean_of(name, losses, step, steps.heads_of(mlm, losses))
    with torch.no_grad():  # to look at a loss, none is needed
        assert steps.mean_of(name, losses, step, steps.heads_of(mlm, losses)).weight > 0


@pytest.mark.parametrize("name", LAYER_TERMS)
def test_reentrant_checkpointing_is_caught(name, checkpoint) -> None:
    """Its first pass runs without a graph: a loss would fall by its head alone."""
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only(name, **BINDING.get(name, {})), steps.prompts()
    knows, heads = steps.extras(mlm, given), steps.heads_of(mlm, losses)
    plain = steps.mean_of(name, losses, steps.make_step(mlm, losses, given, knows), heads).value
    mlm.base.enable_input_require_grads()
    mlm.model.train()
    recompute_layers(mlm.base, reentrant=True)
    step = steps.make_step(mlm, losses, given, knows)
    with pytest.raises(ValueError, match="non-reentrant gradient checkpointing"):
        steps.mean_of(name, losses, step, heads)
    recompute_layers(mlm.base)
    value = steps.mean_of(name, losses, steps.make_step(mlm, losses, given, knows), heads).value
    torch.testing.assert_close(value, plain)
    value.backward()
    read = "v_proj" if name in VALUE_TERMS else "k_proj"
    own = mlm.layer(LAYER).self_attn.get_submodule(read).lora_A.default.weight.grad
    assert own is not None and own.any()


def test_an_adapter_after_the_chosen_layers_is_refused(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"), only=r".*layers\.2\..*")
    given = steps.prompts()
    for name in ("mask", "mass"):
        losses = steps.only(name)
        step = steps.make_step(mlm, losses, given, steps.extras(mlm, given))
        with pytest.raises(ValueError, match="an adapter at or before the chosen layers"):
            steps.mean_of(name, losses, step, steps.heads_of(mlm, losses))


def test_what_a_step_lacks_is_named(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"))
    given = steps.prompts()
    knows = steps.extras(mlm, given)
    step = steps.make_step(mlm, steps.only("mask"), given, knows)
    for name, says in (
        ("text_value", r"Capture\(text=False\)"),
        ("gram", "features of the base model, found none captured"),
        ("dependence", "mask of keys to suppress, found none"),
        ("mass", "mask of keys to suppress, found none"),
        ("kl", "logits of the tuned and the base model"),
    ):
        losses = steps.only(name)
        with pytest.raises(ValueError, match=says):
            steps.mean_of(name, losses, step, steps.heads_of(mlm, losses))
    with pytest.raises(ValueError, match=r"layers out of \[1\], found \[2\]"):
        replace(steps.only("mask").mask, layers=(2,)).loss(
            step, steps.heads_of(mlm, steps.only("mask"))["mask"]
        )
    target = knows[0].masks[0]._replace(share_HW=torch.ones(2, 2))
    losses = steps.only("mask")
    with pytest.raises(
        ValueError, match=r"image 0: expected a mask on its grid of .* found \(2, 2"
    ):
        steps.mean_of(
            "mask",
            losses,
            replace(step, extras=[Extras(masks=(target,))] * 2),
            steps.heads_of(mlm, losses),
        )
    target = knows[0].masks[0]._replace(category=1)
    with pytest.raises(ValueError, match=r"categories 0..0, found \[1\]"):
        steps.mean_of(
            "mask",
            losses,
            replace(step, extras=[Extras(masks=(target,))] * 2),
            steps.heads_of(mlm, losses),
        )
    bare = replace(steps.make_step(mlm, steps.only("dependence"), given, knows), key_bias={})
    with pytest.raises(ValueError, match="bias of k_proj of layer 1"):
        steps.mean_of("dependence", steps.only("dependence"), bare, steps.heads_of(mlm, losses))
