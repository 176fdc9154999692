"""What each layer's queries see, against the weights of the model itself."""

from __future__ import annotations

import pytest
import torch
from micro_batches import (
    batches,
    forward,
    image_at,
    keys_at,
    real_at,
    third_keys,
)

from kvfix.mlm.intervene import Edit, sight_of


@pytest.mark.parametrize("name", ["gemma3", "gemma3_near"])
def test_where_images_see_all_of_themselves_blocking_reaches_earlier_cells_too(name, load):
    """Gemma 3: an image's tokens see later ones of their image; nearer layers see a window."""
    mlm = load(name, attn="eager")
    for encoded in batches(mlm):
        keys = third_keys(encoded)
        base = forward(mlm, encoded, output_attentions=True)
        edited = forward(
            mlm, encoded, [Edit("image", keys, scale=0, layers=[0])], output_attentions=True
        )
        seen_BLL = base.attentions[0].gt(0).any(1) & real_at(encoded)[..., None]
        seen_BLL &= ~torch.eye(seen_BLL.shape[-1], dtype=torch.bool)
        image_BL, key_BL = image_at(encoded), keys_at(encoded, keys)
        edges_BLL = seen_BLL & image_BL[..., None] & key_BL[:, None]
        assert (edges_BLL & torch.ones_like(edges_BLL).triu(1)).any()  # keys that come later
        assert not (edited.attentions[0].gt(0) & edges_BLL[:, None]).any()
        moved_BL = (base.attentions[0] != edited.attentions[0]).any(-1).any(1)
        assert torch.equal(moved_BL & real_at(encoded), edges_BLL.any(-1))
        text = forward(mlm, encoded, [Edit("text", scale=0)])
        for was, now in zip(base.hidden_states, text.hidden_states, strict=True):
            assert torch.equal(was[image_BL], now[image_BL])


WINDOWS = {"gemma3_near": (12, None, 12), "paligemma_near": (12, None, 12)}
WINDOWS |= {"llava_gemma2": (20, None, 20), "llava_mistral": (20, 20, 20)}


@pytest.mark.parametrize("name", ["gemma3", "paligemma", *WINDOWS])
def test_what_each_layer_sees_is_what_the_table_says(name, load):
    mlm = load(name, attn="eager")
    for encoded in batches(mlm):
        base, real_BL = forward(mlm, encoded, output_attentions=True), real_at(encoded)
        for layer, weights_BHLL in enumerate(base.attentions):
            sight = sight_of(mlm, encoded, layer)
            if sight is None:  # a layer without a window, of a model that sees nothing ahead
                assert WINDOWS[name][layer] is None
                continue
            seen_BL = (weights_BHLL.gt(0).any(1) & real_BL[:, None]).sum(-1) - 1
            counted_BL = sight.counted(real_BL, 0, real_BL.shape[1])
            assert torch.equal(counted_BL[real_BL], seen_BL[real_BL])
            assert sight.window == WINDOWS.get(name, (512, None, 512))[layer]
