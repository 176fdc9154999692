"""Sets of image keys: random ones, and ones from maps on the grid."""

from __future__ import annotations

import pytest
import tiny
import torch
from micro_batches import KV_HEADS, LAYERS, three_prompts

from kvfix.mlm.image_keys import on_tokens, random_keys


def test_random_keys_are_as_many_and_uniform():
    generator = torch.Generator().manual_seed(0)
    keys = torch.rand(20, 8, 30, generator=generator) < torch.linspace(0, 1, 8)[:, None]
    drawn = random_keys(keys, generator)
    assert torch.equal(drawn.sum(-1), keys.sum(-1)) and not torch.equal(drawn, keys)
    assert torch.equal(drawn[:, 0], keys[:, 0]) and not keys[:, 0].any()
    two = torch.arange(10) < 2
    hits = sum(random_keys(two, generator).int() for _ in range(4000))
    # 800 expected at each; a binomial's standard deviation is 25.3.
    assert (hits - 800).abs().max() < 5 * 25.3
    among = torch.arange(10) >= 6
    assert torch.equal(random_keys(torch.arange(10) < 4, generator, among=among), among)
    with pytest.raises(ValueError, match=r"positions to draw from, 4, found 5"):
        random_keys(torch.arange(10) < 5, generator, among=among)
    again = [torch.Generator().manual_seed(3) for _ in range(2)]
    nested = [random_keys([[keys[0]], [keys[1], keys[2]]], g) for g in again]
    for one, other in zip(*nested, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert [[k.sum() for k in sample] for sample in nested[0]] == [
        [keys[0].sum()],
        [keys[1].sum(), keys[2].sum()],
    ]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_maps_on_the_grid_become_keys(name, load):
    mlm = load(name)
    for spans in mlm.encode(three_prompts()).images:
        for span in spans:
            height, width = span.layout.grid_hw
            keys = on_tokens(torch.ones(LAYERS, KV_HEADS, height, width) > 0, span.layout)
            assert keys.shape == (LAYERS, KV_HEADS, len(span.positions_V))
            assert (keys.sum(-1) == height * width).all()
            cells = torch.zeros(height, width, dtype=torch.bool)
            cells[1, 2] = True
            at = on_tokens(cells, span.layout).nonzero().flatten()
            assert at.tolist() == [int(span.layout.index_HW[1, 2])]
            with pytest.raises(ValueError, match=r"expected a map on the image's grid"):
                on_tokens(cells.T[:1], span.layout)
