"""Captured features against what the model itself caches and feeds its language model."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from kvfix.mlm import families
from kvfix.mlm.capture import SITES, Capture, extract, split_heads
from kvfix.mlm.load import Mlm, Prompt
from kvfix.mlm.renamed import cache_argument, cache_of, recompute_layers


def _prompts() -> list[Prompt]:
    """One image; two of two sizes after a prefix; one tall image. Lengths differ, so it pads."""
    wide, square = tiny.photo(60, 100), tiny.photo(64, 64, seed=1)
    tall = tiny.photo(150, 70, seed=2)
    return [
        Prompt((wide,), "a cat"),
        Prompt((square, wide), "two dogs?", prefix="Look: "),
        Prompt((tall,), "tree"),
    ]


def _at(encoded, sample: int, image: int) -> torch.Tensor:
    span = encoded.images[sample][image]
    return span.positions_V[span.layout.index_HW]


def _each_image(encoded):
    for sample, spans in enumerate(encoded.images):
        for image in range(len(spans)):
            yield sample, image, _at(encoded, sample, image)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_values_and_keys_are_the_cached_ones(name, side, load):
    mlm = load(name)
    encoded = mlm.encode(_prompts(), padding_side=side)
    cache = DynamicCache()  # made without the config, it keeps all positions of sliding layers, too
    given = {cache_argument(mlm.base.model): cache}
    with torch.no_grad(), Capture(mlm, encoded, rope=True, text=True) as cap:
        mlm.base.model(**encoded.inputs, **given, use_cache=True)
        samples = cap.collect()
    for sample, image, at_HW in _each_image(encoded):
        features = samples[sample].images[image]
        for layer in range(mlm.n_layers):
            value_HWC = cache.layers[layer].values[sample].transpose(0, 1)[at_HW].flatten(-2)
            key_HWC = cache.layers[layer].keys[sample].transpose(0, 1)[at_HW].flatten(-2)
            assert torch.equal(features["value"][layer], value_HWC)
            torch.testing.assert_close(features["key"][layer], key_HWC, atol=1e-5, rtol=0)
    for sample, end in enumerate(encoded.text_end_B.tolist()):
        values_SHD = torch.stack([layer.values[sample, :, end] for layer in cache.layers])
        keys_SHD = torch.stack([layer.keys[sample, :, end] for layer in cache.layers])
        assert torch.equal(samples[sample].text["value"], values_SHD.flatten(-2))
        torch.testing.assert_close(samples[sample].text["key"], keys_SHD.flatten(-2))


@pytest.mark.parametrize("name", tiny.EVERY)
def test_positions_are_those_that_the_model_would_take(name, load):
    """RoPE hides a shift of all positions, and a shift of what is generated after them."""
    mlm = load(name)
    inputs = mlm.encode(_prompts()[1:2]).inputs
    bare = {k: v for k, v in inputs.items() if k != "position_ids"}
    with torch.no_grad():
        one, other = (
            cache_of(mlm.base.model(**given, use_cache=True)).layers[1].keys
            for given in (inputs, bare)
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_every_site_shows_the_same_cells(name, load):
    """Projector cells are the LM's inputs there; vision cells are what these were made of."""
    mlm = load(name)
    encoded = mlm.encode(_prompts())
    given = {}
    hook = mlm.lm.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    with torch.no_grad(), Capture(mlm, encoded) as cap:
        out = mlm.base.model(**encoded.inputs, output_hidden_states=True)
        samples = cap.collect()
    hook.remove()
    for sample, image, at_HW in _each_image(encoded):
        features = samples[sample].images[image]
        layout, row = samples[sample].layouts[image], mlm.family
        assert {f.shape[1:3] for f in features.values()} == {torch.Size(layout.grid_hw)}
        assert torch.equal(features["projector"][0], given["inputs_embeds"][sample][at_HW])
        if layout.rows_HW.shape == layout.index_HW.shape:  # else shrunk: not linear in between
            vision_NC = features["vision"].flatten(0, 2)
            row = mlm.family
            merged = 1 if row.merged else row.patches_a_token(mlm.config)
            assert vision_NC.shape[1] == row.vision_channels(mlm.config)
            rows = vision_NC.view(len(vision_NC) * merged, -1)
            made = families.submodule(mlm.base, row.merged or row.projector)(rows)
            if row.model_type == "gemma3":
                made = made @ mlm.projector.mm_input_projection_weight
            made = made.view_as(features["projector"])
            torch.testing.assert_close(made, features["projector"], atol=1e-5, rtol=1e-4)
        for layer in range(mlm.n_layers - 1):  # the last one of these is after the final norm
            if row.model_type.startswith("qwen3_vl"):  # see the test of deepstack
                continue
            assert torch.equal(
                features["hidden"][layer], out.hidden_states[layer + 1][sample][at_HW]
            )


@pytest.mark.parametrize("name", tiny.EVERY)
def test_batching_and_padding_do_not_move_features(name, load):
    mlm = load(name)
    alone = [extract(mlm, [prompt], rope=True, text=True)[0] for prompt in _prompts()]
    for side in ("left", "right"):
        together = extract(mlm, _prompts(), rope=True, text=True, padding_side=side)
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one.images, many.images, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(one.text, many.text, atol=2e-5, rtol=1e-4)


# PaliGemma 2 has one: transformers refuses SDPA for Gemma 2.
@pytest.mark.parametrize("name", [name for name in tiny.EVERY if name != "paligemma"])
def test_attention_implementations_agree(name, load):
    eager, sdpa = load(name, attn="eager"), load(name, attn="sdpa")
    assert eager.config.text_config._attn_implementation == "eager"
    one, other = extract(eager, _prompts()), extract(sdpa, _prompts())
    for a, b in zip(one, other, strict=True):
        # Loose: the random tower amplifies rounding. Values are of order one.
        torch.testing.assert_close(a.images, b.images, atol=2e-3, rtol=2e-3)


def test_qwen_image_positions_are_two_dimensional(load):
    """Without `mm_token_type_ids` the positions would silently be one-dimensional."""
    mlm = load("qwen2_5_vl")
    encoded = mlm.encode(_prompts())
    given = {}
    hook = mlm.lm.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        mlm.base.model(**encoded.inputs)
    hook.remove()
    for sample, _, at_HW in _each_image(encoded):
        time, row, col = given["position_ids"][-3:, sample][:, at_HW]
        assert (time == time[0, 0]).all()
        assert torch.equal(row - row[:1], torch.arange(len(row))[:, None] + 0 * (row - row[:1]))
        assert torch.equal(col - col[:, :1], torch.arange(row.shape[1])[None].expand_as(col))


def test_image_features_before_the_text_do_not_depend_on_it(load):
    mlm = load("llava_onevision")
    image = tiny.photo(60, 100)
    one, other = (extract(mlm, [Prompt((image,), text)])[0] for text in ("a cat", "a dog"))
    torch.testing.assert_close(one.images, other.images)
    prefixed = extract(mlm, [Prompt((image,), "a cat", prefix="cats ")])[0]
    assert not torch.allclose(one.images[0]["value"], prefixed.images[0]["value"])
    torch.testing.assert_close(one.images[0]["projector"], prefixed.images[0]["projector"])


def _with_lora(mlm: Mlm, *parts: str) -> Mlm:
    config = LoraConfig(r=2, lora_alpha=8, target_modules=mlm.lora_targets(*parts))
    model = get_peft_model(mlm.base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return Mlm(**{**vars(mlm), "model": model.eval()})


@pytest.mark.parametrize("name", [*tiny.EVERY, "llava_phi3", "llava_qwen3"])
def test_lora_counts_when_active_and_only_then(name, load):
    mlm = load(name)
    before = extract(mlm, _prompts())
    tuned = _with_lora(load(name), "lm")
    active = extract(tuned, _prompts())
    with tuned.model.disable_adapter():
        off = extract(tuned, _prompts())
    for base, on, disabled in zip(before, active, off, strict=True):
        for b, n, d in zip(base.images, on.images, disabled.images, strict=True):
            for site in SITES:
                assert torch.equal(b[site], d[site])
            for site in ("key", "value"):
                # Layer 0 reads the same inputs either way: only its own adapter makes a difference.
                assert not torch.allclose(b[site][0], n[site][0])


@pytest.mark.parametrize("name", [*tiny.EVERY, "llava_siglip", "llava_dinov2"])
def test_lora_targets_stay_in_their_part(name, load):
    mlm = load(name)
    row = mlm.family
    for part, path in (("lm", row.lm), ("projector", row.projector), ("vision", row.vision)):
        if (name, part) == ("gemma3", "projector"):  # it has no linear layer
            continue
        tuned = get_peft_model(
            load(name).base, LoraConfig(target_modules=mlm.lora_targets(part), r=1)
        )
        hit = [
            module.removeprefix("base_model.model.").removesuffix(".lora_A")
            for module, _ in tuned.named_modules()
            if module.endswith(".lora_A")
        ]
        assert hit and all(module.startswith(path + ".") for module in hit)
        if part == "vision":
            assert not any(module.startswith(row.projector + ".") for module in hit)
            # All of them take part in the features: each gets a gradient.
            encoded = mlm.encode(_prompts()[:1])
            tuned.get_base_model().model(**encoded.inputs).last_hidden_state.sum().backward()
            lora = {n: p for n, p in tuned.named_parameters() if "lora_B" in n}
            assert all(p.grad is not None for p in lora.values())
    with pytest.raises(ValueError, match=r"expected parts out of lm, projector, vision"):
        mlm.lora_targets("tower")


def _hooks(mlm: Mlm) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in mlm.base.modules()
    )


def test_hooks_are_gone_afterwards_also_after_an_exception(load, monkeypatch):
    mlm = load("llava_onevision")
    encoded = mlm.encode(_prompts())
    extract(mlm, _prompts())  # transformers sets hooks of its own on the first pass
    before = _hooks(mlm)
    with Capture(mlm, encoded, rope=True):
        assert _hooks(mlm) > before
    assert _hooks(mlm) == before
    with pytest.raises(RuntimeError, match=r"boom"), Capture(mlm, encoded):
        raise RuntimeError("boom")
    assert _hooks(mlm) == before
    monkeypatch.setattr(type(mlm.layer(2).self_attn), "forward", None)
    with pytest.raises(TypeError):
        extract(mlm, _prompts())
    assert _hooks(mlm) == before


@pytest.mark.parametrize("name", tiny.EVERY)
def test_a_pass_ends_where_all_that_was_asked_is_kept(name, load):
    """The features are those of a whole pass, and what comes after them is not computed."""
    mlm = load(name)
    encoded = mlm.encode(_prompts())
    last, ran = mlm.layer(mlm.n_layers - 1), []
    for number, part in enumerate((mlm.layer(0), last)):
        part.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    for sites, runs in ((("projector",), []), (("key", "value"), [0]), (("hidden",), [0, 1])):
        with torch.no_grad(), Capture(mlm, encoded, sites=sites, rope=True, text=True) as cap:
            mlm.base.model(**encoded.inputs, use_cache=False)
            whole = cap.collect()
        ran.clear()
        early = extract(mlm, _prompts(), sites=sites, rope=True, text=True)
        assert ran == runs, sites
        for a, b in zip(whole, early, strict=True):
            for one, other in zip([*a.images, a.text], [*b.images, b.text], strict=True):
                for site, f in one.items():
                    assert torch.equal(f, other[site]), site


def test_hooks_are_gone_when_setting_one_fails(load, monkeypatch):
    mlm = load("llava_onevision")
    encoded, before = mlm.encode(_prompts()), _hooks(mlm)
    real = Mlm.layer
    monkeypatch.setattr(Mlm, "layer", lambda self, n: real(self, n if n < 2 else 99))
    with pytest.raises(AttributeError), Capture(mlm, encoded):
        pass
    assert _hooks(mlm) == before


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_checkpointing_gives_the_same_gradients(name, inside, load):
    """Non-reentrant checkpointing runs layers, and so hooks, again in backward."""
    grads = {}
    for checkpointing in (False, True):
        mlm = load(name)
        if checkpointing:
            recompute_layers(mlm.base)
            mlm.base.train()
        encoded = mlm.encode(_prompts()[:2])
        with Capture(mlm, encoded, sites=("key", "value"), grad=True, text=True) as cap:
            mlm.base.model(**encoded.inputs, use_cache=False)
            samples = cap.collect()
            kept = dict(cap._kept)
            loss = sum(s.images[0]["value"][2].square().mean() for s in samples)
            loss = loss + samples[0].text["key"].square().mean()
            if inside:
                loss.backward()
                assert all(cap._kept[at] is x for at, x in kept.items())
        if not inside:
            loss.backward()
        grads[checkpointing] = {
            n: p.grad for n, p in mlm.base.named_parameters() if p.grad is not None
        }
    assert grads[True].keys() == grads[False].keys()
    torch.testing.assert_close(grads[True], grads[False], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_gradients_reach_this_layer_and_earlier_ones(name, load):
    mlm = load(name)
    sample = extract(mlm, _prompts()[:1], sites=("value",), layers=[1], grad=True)[0]
    sample.images[0]["value"].square().sum().backward()
    for layer, reached in ((0, True), (1, True), (2, False)):
        grad = mlm.layer(layer).self_attn.v_proj.weight.grad
        assert (grad is not None and bool(grad.any())) == reached
    assert next(iter(mlm.projector.parameters())).grad is not None
    features = extract(mlm, _prompts()[:1])[0].images[0]
    assert not any(f.requires_grad or f.is_inference() for f in features.values())


def test_layers_sites_and_heads_are_the_asked_ones(load):
    mlm = load("llava_next")
    everything = extract(mlm, _prompts()[:1])[0].images[0]
    some = extract(mlm, _prompts()[:1], sites=["value", "vision"], layers=[2, 0])[0].images[0]
    assert list(some) == ["vision", "value"]
    assert torch.equal(some["value"], everything["value"][[2, 0]])
    heads_SHWD = split_heads(everything["value"], mlm.n_kv_heads)
    assert heads_SHWD.shape == (3 * 2, *everything["value"].shape[1:3], mlm.head_dim)
    assert torch.equal(heads_SHWD[3], everything["value"][1][..., mlm.head_dim :])
    with pytest.raises(ValueError, match=r"divide into 3 heads"):
        split_heads(everything["value"], 3)


def test_wrong_use_is_refused(load):
    mlm = load("llava")
    encoded = mlm.encode(_prompts())
    with pytest.raises(ValueError, match=r"expected sites out of vision.*found \['values'\]"):
        extract(mlm, _prompts(), sites=("values",))
    with pytest.raises(ValueError, match=r"expected layers 0..2, found \[3\]"):
        extract(mlm, _prompts(), layers=[3])
    with Capture(mlm, encoded) as cap, torch.no_grad():
        with pytest.raises(ValueError, match=r"after one forward pass, found 0"):
            cap.collect()
        mlm.base.model(**encoded.inputs)
        cap.collect()
        mlm.base.model(**encoded.inputs)
        with pytest.raises(ValueError, match=r"found 2 passes"):
            cap.collect()
    other = mlm.encode(_prompts()[:1])
    with (
        Capture(mlm, encoded),
        torch.no_grad(),
        pytest.raises(ValueError, match=r"over the encoded batch"),
    ):
        mlm.base.model(**other.inputs)


def test_no_attention_matrices_and_no_full_sequences_are_kept(load):
    mlm = load("llava_onevision")
    encoded = mlm.encode(_prompts())
    cells = sum(s.layout.index_HW.numel() for spans in encoded.images for s in spans)
    with torch.no_grad(), Capture(mlm, encoded) as cap:
        out = mlm.base.model(**encoded.inputs)
        assert out.attentions is None
        lm = [x for (site, _), x in cap._kept.items() if site in ("hidden", "key", "value")]
        assert len(lm) == 3 * mlm.n_layers
        assert all(len(x) == cells and x.untyped_storage().nbytes() == x.nbytes for x in lm)


def test_bf16_keeps_its_dtype_and_stays_bit_exact(load):
    mlm = load("qwen2_5_vl", dtype=torch.bfloat16)
    encoded = mlm.encode(_prompts())
    with torch.no_grad(), Capture(mlm, encoded) as cap:
        cache = cache_of(mlm.base.model(**encoded.inputs, use_cache=True))
        samples = cap.collect()
    for sample, image, at_HW in _each_image(encoded):
        features = samples[sample].images[image]
        assert {f.dtype for f in features.values()} == {torch.bfloat16}
        value_HWC = cache.layers[1].values[sample].transpose(0, 1)[at_HW].flatten(-2)
        assert torch.equal(features["value"][1], value_HWC)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_hidden_features_hold_what_deepstack_adds(name, load):
    """They are what the next layer reads; the layer's own output lacks the tower's level."""
    mlm = load(name)
    encoded = mlm.encode(_prompts())
    reads, puts = {}, {}
    hooks = [
        hook
        for n in range(mlm.n_layers)
        for hook in (
            mlm.layer(n).register_forward_pre_hook(lambda m, args, n=n: reads.update({n: args[0]})),
            mlm.layer(n).register_forward_hook(lambda m, args, out, n=n: puts.update({n: out})),
        )
    ]
    samples = extract(mlm, _prompts(), sites=("hidden",))
    for hook in hooks:
        hook.remove()
    for sample, image, at_HW in _each_image(encoded):
        hidden = samples[sample].images[image]["hidden"]
        for layer in range(mlm.n_layers - 1):
            assert torch.equal(hidden[layer], reads[layer + 1][sample][at_HW])
            assert not torch.allclose(hidden[layer], puts[layer][sample][at_HW])
        assert torch.equal(hidden[-1], puts[mlm.n_layers - 1][sample][at_HW])
    assert "features of 2 earlier layers" in mlm.warnings[0]
