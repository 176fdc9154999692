"""Which edges an edit names, and which edits are refused."""

from __future__ import annotations

import math

import pytest
import torch
from micro_batches import KV_HEADS, LAYERS, count_hooks, three_prompts

from kvfix.mlm.edges import Change, Edit, HeadGroup, resolve
from kvfix.mlm.intervene import intervene


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Edit("vision", scale=0), r"expected queries 'text' or 'image', found 'vision'"),
        (lambda: Edit("text"), r"either scale or bias_SH, found neither"),
        (lambda: Edit("text", scale=0, bias_SH=torch.zeros(3, 2)), r"found both"),
        (lambda: Edit("text", scale=1.5), r"scale in 0..1, found 1.5"),
        (lambda: Edit("text", scale=math.nan), r"scale in 0..1, found nan"),
        (lambda: Edit("text", scale=0, layers=[3]), r"layers out of 0..2, each once, found \[3\]"),
        (lambda: Edit("text", scale=0, layers=[1, 1]), r"found repetitions in \[1, 1\]"),
        (lambda: Edit("text", scale=0, heads=[-1]), r"heads out of 0..1, each once, found \[-1\]"),
        (lambda: Edit("text", torch.ones(7), scale=0), r"shape \(\d+,\).*found torch.float32 \(7"),
        (lambda: Edit("text", torch.ones(2, 2, 7) > 0, scale=0), r"found torch.bool \(2, 2, 7\)"),
        (lambda: Edit("text", [[], []], scale=0), r"images, \[1, 2, 1\] of them, found \[0, 0\]"),
        (lambda: Edit("text", bias_SH=torch.zeros(2, 3)), r"KV heads, \(3, 2\), found .*\(2, 3\)"),
        (lambda: Edit("text", bias_SH=torch.full((3, 2), math.nan)), r"found NaN or \+inf"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, message, load):
    mlm = load("llava_onevision")
    encoded, before = mlm.encode(three_prompts()), count_hooks(mlm)
    with pytest.raises(ValueError, match=message), intervene(mlm, encoded, [edit()]):
        pass
    assert count_hooks(mlm) == before


def test_text_between_images_is_left_alone(load):
    """It feeds the second image, whose states must not move."""
    mlm = load("qwen2_5_vl")
    encoded = mlm.encode(three_prompts()[1:2])
    first, second = encoded.images[0]
    assert second.positions_V[0] > first.positions_V[-1] + 1
    group = resolve([Edit("text", scale=0)], encoded, n_layers=3, n_kv_heads=2)[0][0]
    length = encoded.inputs["input_ids"].shape[1]
    assert group.heads == (0, 1)
    assert group.rows(0, length).index_R[0] == second.positions_V[-1] + 1
    assert torch.equal(group.rows(length, 1).index_R, torch.tensor([0]))


def _hand_made(generated: bool) -> HeadGroup:
    """Two samples of four positions: keys 1 and 2 of the first one, none of the second."""
    keys_BL = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    amounts_SH = torch.tensor([[9.0, -2.0]])
    queries_BL = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]).bool()
    none = torch.iinfo(torch.int64).max
    return HeadGroup(
        heads=(1,),
        queries_BL=queries_BL,
        generated=generated,
        first_B=torch.tensor([1, none]),
        changes=(Change(keys_BL, amounts_SH, 0, 1),),
    )


@pytest.mark.parametrize(
    ("start", "count", "generated", "rows"),
    [
        (0, 4, False, [2]),  # query 1 is the first key itself, query 3 is none
        (0, 2, False, []),
        (2, 1, False, [0]),
        (1, 5, True, [1, 3, 4]),  # positions 2, 4, 5
        (4, 1, True, [0]),
        (4, 1, False, []),
    ],
)
def test_rows_are_the_queries_after_their_samples_first_key(start, count, generated, rows):
    found = _hand_made(generated).rows(start, count)
    assert found.index_R.tolist() == rows
    assert found.changed_BR.tolist() == [[True] * len(rows), [False] * len(rows)]


def test_masks_in_numbers():
    """Rows 2 and 3; sample 1 starts with padding. The own key keeps its logit."""
    inf, at_R = math.inf, torch.tensor([2, 3])
    expected = [
        [[0, -2, 0, -inf, -inf], [0, -2, -2, 0, -inf]],
        [[0, 0, 0, -inf, -inf], [0, 0, 0, 0, -inf]],
    ]
    group = _hand_made(False)
    mask_B1RK = group.mask(at_R, 5, None, dtype=torch.float32)
    assert mask_B1RK.squeeze(1).tolist() == expected
    given = (torch.arange(5) <= at_R[:, None]).repeat(2, 1, 1, 1)
    given[1, ..., :3] = False
    # Row 2 is padding there: it sees itself, so that nothing becomes NaN.
    expected[1] = [[-inf, -inf, 0, -inf, -inf], [-inf, -inf, -inf, 0, -inf]]
    mask_B1RK = group.mask(at_R, 5, given, dtype=torch.bfloat16)
    assert mask_B1RK.dtype == torch.bfloat16 and mask_B1RK.squeeze(1).tolist() == expected
    additive = torch.zeros(2, 1, 2, 5).masked_fill(~given, -1e9)
    mask_B1RK = group.mask(at_R, 5, additive, dtype=torch.float32)
    assert mask_B1RK.clamp(min=-1e9).squeeze(1).tolist() == [
        [[max(x, -1e9) for x in row] for row in sample] for sample in expected
    ]
    assert group.mask(torch.tensor([1]), 2, None, dtype=torch.float32)[0].tolist() == [[[0, 0]]]


def test_heads_that_change_alike_share_a_mask(load):
    mlm = load("llava_onevision")
    encoded = mlm.encode(three_prompts(1))
    tokens = len(encoded.images[0][0].positions_V)
    keys = torch.zeros(LAYERS, KV_HEADS, tokens, dtype=torch.bool)
    keys[0, :, 4] = keys[1, 0, 4] = keys[1, 1, 5] = True

    def heads(*edits: Edit) -> dict[int, list[tuple[int, ...]]]:
        found = resolve(edits, encoded, n_layers=LAYERS, n_kv_heads=KV_HEADS)
        return {layer: [group.heads for group in groups] for layer, groups in found.items()}

    assert heads(Edit("text", keys, scale=0)) == {0: [(0, 1)], 1: [(0,), (1,)]}
    bias_SH = torch.ones(LAYERS, KV_HEADS)
    assert heads(Edit("text", keys[0, 0], bias_SH=bias_SH, layers=[2])) == {2: [(0, 1)]}
    bias_SH.requires_grad_()  # each head will learn its own
    assert heads(Edit("text", keys[0, 0], bias_SH=bias_SH, layers=[2])) == {2: [(0,), (1,)]}
