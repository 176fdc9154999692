"""Edited attention against the model itself, against masks set by hand, and against numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from micro_batches import (
    KV_HEADS,
    LAYERS,
    SHARED,
    batches,
    causal_models,
    count_hooks,
    every_model,
    forward,
    image_at,
    keys_at,
    real_at,
    text_at,
    third_keys,
    three_prompts,
)

from kvfix.mlm.edges import resolve
from kvfix.mlm.intervene import Edit, intervene
from kvfix.mlm.load import Mlm, Prompt
from kvfix.mlm.renamed import cache_of


@causal_models
def test_text_to_image_edges_move_answers_and_no_image_state(name, attn, load):
    mlm = load(name, attn=attn)
    for encoded in batches(mlm):
        base, edited = (forward(mlm, encoded, e) for e in ((), [Edit("text", scale=0)]))
        image_BL, text_BL = image_at(encoded), text_at(encoded)
        before_BL = real_at(encoded) & ~text_BL
        assert len(base.hidden_states) == LAYERS + 1
        for was, now in zip(base.hidden_states, edited.hidden_states, strict=True):
            assert torch.equal(was[image_BL], now[image_BL])
            assert torch.equal(was[before_BL], now[before_BL])
        moved_BL = (base.logits != edited.logits).any(-1)
        assert torch.equal(moved_BL & real_at(encoded), text_BL)
        assert (base.logits - edited.logits)[text_BL].abs().amax(-1).min() > 1e-3


@causal_models
def test_image_to_image_edges_move_later_values_only(name, attn, load):
    mlm = load(name, attn=attn)
    for encoded in batches(mlm):
        keys = third_keys(encoded)
        edit = Edit("image", keys, scale=0, layers=[0])
        base, edited = (forward(mlm, encoded, e, use_cache=True) for e in ((), [edit]))
        later_BL = (keys_at(encoded, keys).cumsum(-1) - keys_at(encoded, keys).int()) > 0
        for layer in range(LAYERS):
            was, now = (
                cache_of(out).layers[layer].values.transpose(1, 2) for out in (base, edited)
            )
            moved_BL = (was != now).flatten(2).any(-1) & real_at(encoded)
            # Layer 0's attention differs, so layer 1's values do; what reads them, in layer 2.
            reached_BL = [torch.zeros_like(later_BL), image_at(encoded), real_at(encoded)][layer]
            assert torch.equal(moved_BL, later_BL & reached_BL)


@every_model
def test_what_changes_nothing_is_bit_identical_and_installs_nothing(name, attn, load):
    mlm = load(name, attn=attn)
    configs = [mlm.layer(n).self_attn.config for n in range(LAYERS)]
    for encoded in batches(mlm):
        none = [[torch.zeros_like(of) for of in sample] for sample in third_keys(encoded)]
        base = forward(mlm, encoded)
        hooks = count_hooks(mlm)  # transformers sets hooks of its own on the first pass
        for edits in (
            [],
            [Edit("text", scale=1), Edit("image", scale=1.0)],
            [Edit("text", none, scale=0), Edit("image", none, scale=0.5)],
            [Edit("image", bias_SH=torch.zeros(LAYERS, KV_HEADS))],
            [Edit("text", scale=0, layers=[]), Edit("text", scale=0, heads=[])],
        ):
            with intervene(mlm, encoded, edits):
                assert count_hooks(mlm) == hooks
                assert all(mlm.layer(n).self_attn.config is c for n, c in enumerate(configs))
            edited = forward(mlm, encoded, edits)
            assert torch.equal(base.logits, edited.logits)
            for was, now in zip(base.hidden_states, edited.hidden_states, strict=True):
                assert torch.equal(was, now)


@every_model
def test_a_layer_without_changes_is_left_alone(name, attn, load):
    mlm = load(name, attn=attn)
    encoded = mlm.encode(three_prompts())
    key_SHV = torch.zeros(LAYERS, KV_HEADS, 1, dtype=torch.bool)
    key_SHV[1, 0] = True
    keys = [
        [key_SHV & torch.ones(len(s.positions_V), dtype=torch.bool) for s in spans]
        for spans in encoded.images
    ]
    assert list(resolve([Edit("text", keys, scale=0)], encoded, n_layers=3, n_kv_heads=2)) == [1]
    base, edited = (forward(mlm, encoded, e) for e in ((), [Edit("text", keys, scale=0)]))
    same = [
        torch.equal(a, b) for a, b in zip(base.hidden_states, edited.hidden_states, strict=True)
    ]
    assert same == [True, True, False, False]


def _inputs_of_o_proj(mlm: Mlm, encoded, edits, layer: int) -> torch.Tensor:
    """(B, L, query heads, D)."""
    kept = {}
    hook = mlm.layer(layer).self_attn.o_proj.register_forward_pre_hook(
        lambda module, args: kept.update(x=args[0])
    )
    forward(mlm, encoded, edits)
    hook.remove()
    return kept["x"].unflatten(-1, (mlm.n_heads, -1))


@pytest.mark.parametrize("head", range(KV_HEADS))
@every_model
def test_a_kv_head_moves_its_own_query_heads_only(name, attn, head, load):
    mlm = load(name, attn=attn)
    for encoded in batches(mlm):
        edit = Edit("text", scale=0, heads=[head], layers=[0])
        base, edited = (_inputs_of_o_proj(mlm, encoded, e, 0) for e in ((), [edit]))
        moved_BLH = (base != edited).any(-1)
        text_BL = text_at(encoded)
        for query_head in range(mlm.n_heads):
            own = query_head // SHARED == head
            assert torch.equal(moved_BLH[..., query_head], text_BL & own)


def _by_hand(mlm: Mlm, encoded, added_SBHLL: torch.Tensor) -> torch.Tensor:
    """Logits where every layer gets one whole mask a query head: slow, and another way."""
    mask_BL = real_at(encoded)
    length = mask_BL.shape[1]
    allowed_BLL = torch.ones(length, length).tril().bool() & mask_BL[:, None]
    allowed_BLL = allowed_BLL | torch.eye(length).bool()
    masks = [
        added.masked_fill(~allowed_BLL[:, None], torch.finfo(torch.float32).min)
        for added in added_SBHLL
    ]
    hooks = [
        mlm.layer(n).self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, n=n: (args, {**kwargs, "attention_mask": masks[n]}),
            with_kwargs=True,
        )
        for n in range(LAYERS)
    ]
    with torch.no_grad():
        logits = mlm.model(**encoded.inputs).logits
    for hook in hooks:
        hook.remove()
    return logits


@causal_models
def test_edits_are_masks_set_by_hand(name, attn, load):
    """Scale, bias and block at once; keys differ by layer, head, image and sample."""
    mlm = load(name, attn=attn)
    generator = torch.Generator().manual_seed(0)
    for encoded in batches(mlm):
        keys = [
            [torch.rand(LAYERS, KV_HEADS, len(s.positions_V), generator=generator) < 0.3
             for s in spans]
            for spans in encoded.images
        ]  # fmt: skip
        bias_SH = torch.randn(LAYERS, KV_HEADS, generator=generator)
        edits = [
            Edit("text", keys, scale=0.25),
            Edit("image", keys, bias_SH=bias_SH, layers=[0, 2]),
            Edit("image", scale=0.0, layers=[1], heads=[1]),
            Edit("text", bias_SH=bias_SH, heads=[0]),
        ]
        image_BL, text_BL = image_at(encoded), text_at(encoded)
        batch, length = image_BL.shape
        key_SBHL = torch.zeros(LAYERS, batch, KV_HEADS, length)
        for sample, spans in enumerate(encoded.images):
            for span, of in zip(spans, keys[sample], strict=True):
                key_SBHL[:, sample, :, span.positions_V] = of.float()
        added = torch.zeros(LAYERS, batch, mlm.n_heads, length, length)
        bias = bias_SH.repeat_interleave(SHARED, 1)[:, None, :, None, None]
        at = key_SBHL.repeat_interleave(SHARED, 2)[:, :, :, None]
        text, image = text_BL[None, :, None, :, None], image_BL[None, :, None, :, None]
        added += at * text * math.log(0.25)
        added[[0, 2]] += (at * image * bias)[[0, 2]]
        added[:, :, :SHARED] += (text * image_BL[:, None, None] * bias)[:, :, :SHARED]
        blocked = (image[0] & image_BL[:, None, None]).expand(-1, SHARED, -1, -1)
        added[1][:, SHARED:] += torch.where(blocked, -torch.inf, 0.0)
        added.diagonal(dim1=-2, dim2=-1).fill_(0)
        expected = _by_hand(mlm, encoded, added)
        found = forward(mlm, encoded, edits).logits
        real_BL = real_at(encoded)
        torch.testing.assert_close(found[real_BL], expected[real_BL], atol=2e-5, rtol=1e-4)
        plain = _by_hand(mlm, encoded, 0 * added.nan_to_num(neginf=0))
        assert (expected - plain)[text_BL].abs().max() > 0.1


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_scale_multiplies_weights_and_they_sum_to_one_again(name, load):
    """Numbers from the first layer's own weights; a bias of log s is the same."""
    mlm = load(name, attn="eager")
    encoded = mlm.encode(three_prompts())
    base = forward(mlm, encoded, output_attentions=True).attentions[0]
    keys, scale = third_keys(encoded), 0.3
    edges_BLL = text_at(encoded)[:, :, None] & keys_at(encoded, keys)[:, None]
    wanted = torch.where(edges_BLL[:, None], base * scale, base)
    wanted = wanted / wanted.sum(-1, keepdim=True)
    bias_SH = torch.full((LAYERS, KV_HEADS), math.log(scale))
    twice = [Edit("text", keys, scale=scale**0.5)] * 2
    for edits in (
        [Edit("text", keys, scale=scale)],
        [Edit("text", keys, bias_SH=bias_SH)],
        twice,
    ):
        found = forward(mlm, encoded, edits, output_attentions=True).attentions[0]
        real_BL = real_at(encoded)
        torch.testing.assert_close(
            found.transpose(1, 2)[real_BL], wanted.transpose(1, 2)[real_BL], atol=1e-6, rtol=1e-5
        )
        unmoved = ~text_at(encoded)
        assert torch.equal(found.transpose(1, 2)[unmoved], base.transpose(1, 2)[unmoved])


@every_model
def test_scale_zero_is_block_and_a_tiny_scale_is_nearly_one(name, attn, load):
    mlm = load(name, attn=attn)
    encoded = mlm.encode(three_prompts())
    keys, base = third_keys(encoded), forward(mlm, encoded).logits
    infinite = torch.full((LAYERS, KV_HEADS), -torch.inf)
    block = forward(mlm, encoded, [Edit("text", keys, bias_SH=infinite)]).logits
    zero = forward(mlm, encoded, [Edit("text", keys, scale=0)]).logits
    both = forward(mlm, encoded, [Edit("text", keys, scale=0), Edit("text", keys, scale=0.5)])
    assert torch.equal(zero, block) and torch.equal(zero, both.logits)
    near = forward(mlm, encoded, [Edit("text", keys, scale=1e-12)]).logits
    torch.testing.assert_close(near, zero, atol=1e-5, rtol=1e-4)
    nearly = forward(mlm, encoded, [Edit("text", keys, scale=1 - 1e-7)]).logits
    torch.testing.assert_close(nearly, base, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(zero, base, atol=1e-3)


def _longer(encoded, tokens_BN: torch.Tensor):
    """The batch of prompt + generated tokens."""
    inputs = dict(encoded.inputs)
    more = {
        "input_ids": tokens_BN,
        "attention_mask": torch.ones_like(tokens_BN),
        "mm_token_type_ids": torch.zeros_like(tokens_BN),
    }
    if "position_ids" in inputs:
        ahead = torch.arange(1, tokens_BN.shape[1] + 1)
        more["position_ids"] = inputs["position_ids"][:, -1:] + ahead
    for name in more.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], more[name]], 1)
    return replace(encoded, inputs=inputs)


@every_model
def test_generation_is_the_teacher_forced_pass(name, attn, load):
    mlm = load(name, attn=attn)
    mlm.model.generation_config.eos_token_id = None  # so that all run on
    for encoded in (mlm.encode(three_prompts(1)), mlm.encode(three_prompts())):
        keys = third_keys(encoded)
        edits = [
            Edit("text", scale=0, heads=[0]),
            Edit("text", keys, scale=0.2, heads=[1]),
            Edit("image", keys, scale=0, layers=[0, 1]),
        ]
        options = {
            "max_new_tokens": 6, "do_sample": False,
            "output_logits": True, "return_dict_in_generate": True,
        }  # fmt: skip
        length = encoded.inputs["input_ids"].shape[1]
        with torch.no_grad(), intervene(mlm, encoded, edits):
            out = mlm.model.generate(**encoded.inputs, **options)
        tokens_BN = out.sequences[:, length:]
        longer = _longer(encoded, tokens_BN)
        plain, forced = (forward(mlm, longer, e).logits[:, length - 1 : -1] for e in ((), edits))
        assert tokens_BN.shape[1] == 6
        assert torch.equal(forced.argmax(-1), tokens_BN)
        torch.testing.assert_close(torch.stack(out.logits, 1), forced, atol=2e-5, rtol=1e-4)
        # The shorter batch's block serves the longer pass, too.
        with torch.no_grad(), intervene(mlm, encoded, edits):
            again = mlm.model(**longer.inputs).logits[:, length - 1 : -1]
        assert torch.equal(again, forced)
        assert ((plain - forced).abs().amax(-1) > 1e-2).all()


@pytest.mark.parametrize("side", ["left", "right"])
@every_model
def test_padding_does_not_move_edited_passes(name, attn, side, load):
    mlm = load(name, attn=attn)
    encoded = mlm.encode(three_prompts(), padding_side=side)

    def edits(of):
        keys = third_keys(of)
        return [Edit("text", keys, scale=0), Edit("image", keys, scale=0.1, heads=[1])]

    many = forward(mlm, encoded, edits(encoded)).logits.log_softmax(-1)
    for number, prompt in enumerate(three_prompts()):
        alone = mlm.encode([prompt])
        one = forward(mlm, alone, edits(alone)).logits.log_softmax(-1)
        torch.testing.assert_close(
            one[0], many[number][real_at(encoded)[number]], atol=1e-5, rtol=0
        )


def test_bf16_blocks_and_leaves_alone(load):
    mlm = load("qwen2_5_vl", dtype=torch.bfloat16)
    encoded = mlm.encode(three_prompts())
    base, edited = (forward(mlm, encoded, e) for e in ((), [Edit("text", scale=0.5)]))
    image_BL = image_at(encoded)
    assert edited.logits.dtype == torch.bfloat16 and edited.logits.isfinite().all()
    assert torch.equal(base.hidden_states[-1][image_BL], edited.hidden_states[-1][image_BL])
    assert not torch.equal(base.logits, edited.logits)


def test_nothing_stays_behind_also_after_exceptions(load, monkeypatch):
    mlm = load("llava_onevision")
    encoded = mlm.encode(three_prompts())
    edits = [Edit("text", scale=0)]
    base = forward(mlm, encoded).logits
    before, configs = count_hooks(mlm), [mlm.layer(n).self_attn.config for n in range(LAYERS)]

    def clean() -> bool:
        same = all(mlm.layer(n).self_attn.config is c for n, c in enumerate(configs))
        return same and count_hooks(mlm) == before

    with intervene(mlm, encoded, edits):
        assert not clean()
    assert clean()
    with pytest.raises(RuntimeError, match=r"boom"), intervene(mlm, encoded, edits):
        raise RuntimeError("boom")
    assert clean()
    real = Mlm.layer
    with monkeypatch.context() as patch:
        patch.setattr(Mlm, "layer", lambda self, n: real(self, n if n < 2 else 99))
        with pytest.raises(AttributeError), intervene(mlm, encoded, edits):
            pass
    assert clean()
    assert torch.equal(forward(mlm, encoded).logits, base)
    assert mlm.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_passes_that_positions_mean_nothing_in_are_refused(name, load):
    mlm = load(name)
    encoded = mlm.encode(three_prompts(1))
    other = mlm.encode([Prompt((tiny.photo(60, 100),), "a dog")])
    edits = [Edit("text", scale=0)]
    options = {"max_new_tokens": 2, "do_sample": False}
    with intervene(mlm, encoded, edits), torch.no_grad():
        with pytest.raises(ValueError, match=r"a DynamicCache.*found StaticCache; generate"):
            mlm.model.generate(**encoded.inputs, **options, cache_implementation="static")
        with pytest.raises(ValueError, match=r"expected input_ids of the encoded batch.*beams"):
            mlm.model.generate(**encoded.inputs, **options, num_beams=2)
        with pytest.raises(ValueError, match=r"expected the encoded batch, found other input_ids"):
            mlm.model(**other.inputs)
        with (
            pytest.raises(
                ValueError, match=r"a layer that no other open intervene\(\) block changes"
            ),
            intervene(mlm, encoded, edits),
        ):
            pass
    flash = mlm.layer(0).self_attn.config
    flash._attn_implementation = "flash_attention_2"
    with (
        pytest.raises(ValueError, match=r"under sdpa or eager.*found 'flash_attention_2'; load it"),
        intervene(mlm, encoded, edits),
    ):
        pass
