"""Readout losses: values computed by hand, gradients, and masks with nothing inside."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kvfix.repair.terms.correspondence import correspondence_nce
from kvfix.repair.terms.distil import distil_choice
from kvfix.repair.terms.mask import mask_bce, mask_dice
from kvfix.repair.terms.mean import Mean, masked_mean, pooled
from kvfix.repair.terms.text_value import text_value_nce


def _zero_with_graph(mean: Mean, *leaves: Tensor) -> None:
    """Nothing counted, and backward still reaches every leaf, with zeros."""
    assert mean.value.item() == 0 and mean.weight.item() == 0
    mean.value.backward()
    for leaf in leaves:
        assert leaf.grad is not None and not leaf.grad.any() and leaf.grad.isfinite().all()


def test_masked_mean_divides_by_what_is_inside() -> None:
    x = torch.tensor([1.0, 2.0, torch.nan, 10.0], requires_grad=True)
    mean = masked_mean(x, torch.tensor([1.0, 0.5, 0.0, 0.0]))
    assert mean.value.item() == pytest.approx((1 + 0.5 * 2) / 1.5)
    mean.value.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([1 / 1.5, 0.5 / 1.5, 0, 0]))
    y = torch.full((3,), torch.nan, requires_grad=True)
    _zero_with_graph(masked_mean(y, torch.zeros(3, dtype=torch.bool)), y)
    _zero_with_graph(masked_mean(z := torch.ones(0, requires_grad=True), torch.ones(())), z)


def test_pooled_means_are_the_mean_of_all_however_they_were_shared_out() -> None:
    x, weight = torch.arange(6.0), torch.tensor([1, 0, 1, 1, 0, 1.0])
    parts = [masked_mean(x[i], weight[i]) for i in (slice(0, 2), slice(2, 5), slice(5, 6))]
    torch.testing.assert_close(pooled(parts).value, masked_mean(x, weight).value)
    with pytest.raises(ValueError, match="expected at least one mean to pool"):
        pooled([])


def test_mask_bce_by_hand() -> None:
    # Image 0: logits 0 and log 3 with labels 1 and 0.5, the second cell counting half; image 1:
    # one cell, logit 0, label 0. Two layers, the second with all logits 0.
    logits = torch.tensor([[0.0, math.log(3), 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    share, valid = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 1.0])
    log2 = math.log(2)
    half = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    image_0 = ((log2 + 0.5 * half) + (log2 + 0.5 * log2)) / 3
    mean = mask_bce(logits, share, valid, [2, 1])
    assert mean.value.item() == pytest.approx((image_0 + log2) / 2)
    assert mean.weight.item() == 2
    mean.value.backward()
    assert logits.grad is not None and logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_mask_dice_by_hand_and_least_at_the_soft_label() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    share, valid = torch.tensor([1.0, 0.0]), torch.ones(2)
    # p = 1/2: 1 - (2 * 1/2 + 1) / (1/4 + 1/4 + 1 + 1)
    assert mask_dice(logits, share, valid, [2]).value.item() == pytest.approx(1 - 2 / 2.5)
    soft, at = torch.tensor([0.3, 0.8]), torch.linspace(-3, 3, 61)
    grid = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1).view(-1, 2)
    losses = torch.stack([mask_dice(x[None], soft, valid, [2]).value for x in grid])
    best = grid[losses.argmin()].sigmoid()
    torch.testing.assert_close(best, soft, atol=0.03, rtol=0)
    assert losses.min() < 1e-3


def test_images_without_a_valid_cell_are_left_out_of_mask_losses() -> None:
    torch.manual_seed(0)
    logits, share = torch.randn(2, 5), torch.rand(5)
    valid = torch.tensor([1.0, 1, 1, 0, 0])
    for loss in (mask_bce, mask_dice):
        both = loss(logits, share, valid, [3, 2])
        alone = loss(logits[:, :3], share[:3], valid[:3], [3])
        torch.testing.assert_close(both, alone)
        leaf = logits.clone().requires_grad_()
        _zero_with_graph(loss(leaf, share, torch.zeros(5), [3, 2]), leaf)
        leaf = torch.zeros(2, 0, requires_grad=True)
        _zero_with_graph(loss(leaf, share[:0], valid[:0], []), leaf)


def test_text_value_nce_by_hand() -> None:
    # Similarities log 1, log 2, log 3, log 4; the last cell is void. Positives: cell 1 whole,
    # cell 2 half; candidates 1 + 2 + 3.
    similarity = torch.tensor([[1.0, 2, 3, 4]]).log().requires_grad_()
    share, valid = torch.tensor([0.0, 1, 0.5, 1]), torch.tensor([1.0, 1, 1, 0])
    mean = text_value_nce(similarity, share, valid, [4])
    by_hand = (-math.log(2 / 6) - 0.5 * math.log(3 / 6)) / 1.5
    assert mean.value.item() == pytest.approx(by_hand)
    mean.value.backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] < 0 < similarity.grad[0, 0] and similarity.grad[0, 3] == 0


def test_text_value_nce_keeps_images_apart_and_leaves_out_empty_masks() -> None:
    torch.manual_seed(0)
    similarity, share = 50 * torch.randn(2, 7), torch.rand(7)
    one = text_value_nce(similarity[:, :4], share[:4], torch.ones(4), [4])
    two = text_value_nce(similarity[:, 4:], share[4:], torch.ones(3), [3])
    both = text_value_nce(similarity, share, torch.ones(7), [4, 3])
    torch.testing.assert_close(both, pooled([one, two]))
    empty = torch.cat((share[:4], torch.zeros(3)))
    torch.testing.assert_close(text_value_nce(similarity, empty, torch.ones(7), [4, 3]), one)
    for valid in (torch.ones(7), torch.zeros(7)):  # no positive; not even a candidate
        leaf = similarity.clone().requires_grad_()
        _zero_with_graph(text_value_nce(leaf, 0 * share, valid, [4, 3]), leaf)


def test_correspondence_nce_by_hand() -> None:
    # One layer, one point. Cells (1, 0), (0, 1), (-1, 0); the point lies on the first.
    cells = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]])
    source = torch.tensor([[[2.0, 0]]], requires_grad=True)  # (1, 0) over a temperature of 1/2
    near = torch.tensor([[True, False, False]])
    mean = correspondence_nce(source, cells[:, :1], cells, near, torch.tensor([True]))
    by_hand = -math.log(math.e**2 / (math.e**2 + 1 + math.e**-2))
    assert mean.value.item() == pytest.approx(by_hand)
    # Were the first cell a negative of itself, the loss would be larger.
    wrong = correspondence_nce(source, cells[:, :1], cells, ~near & near, torch.tensor([True]))
    assert wrong.value > mean.value + 0.1
    mean.value.backward()
    assert source.grad is not None and source.grad[0, 0, 0] < 0


def test_correspondence_nce_counts_visible_points_and_stands_a_grid_of_one_cell() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    cells, near = torch.randn(2, 6, 4), torch.zeros(3, 6, dtype=torch.bool)
    seen = torch.tensor([True, False, True])
    some = correspondence_nce(source, target, cells, near, seen)
    at = seen.nonzero().flatten()
    few = correspondence_nce(source[:, at], target[:, at], cells, near[at], seen[at])
    torch.testing.assert_close(some, few)
    _zero_with_graph(correspondence_nce(source, target, cells, near, ~seen & seen), source)
    alone = torch.randn(2, 3, 4, requires_grad=True)
    ones = torch.ones(3, 1, dtype=torch.bool)
    only = correspondence_nce(alone, target, cells[:, :1], ones, seen)
    assert only.value == 0
    only.value.backward()
    assert alone.grad is not None and alone.grad.isfinite().all()


def test_distil_by_hand() -> None:
    # Readout 3 : 1 at temperature 1, model 1 : 1; a third option does not exist.
    letters = torch.tensor([[0.0, 0.0, 9.0]], requires_grad=True)
    scores = torch.tensor([[math.log(3), 0.0, 9.0]], requires_grad=True)
    options = torch.tensor([[True, True, False]])
    mean = distil_choice(letters, scores, options, torch.ones(1), temperature=1.0)
    assert mean.value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    mean.value.backward()
    assert letters.grad is not None and scores.grad is None  # the readout teaches
    torch.testing.assert_close(letters.grad, torch.tensor([[-0.25, 0.25, 0.0]]))
    same = distil_choice(letters, letters, options, torch.ones(1), temperature=1.0)
    assert same.value.abs() < 1e-7
    surer = distil_choice(letters, scores, options, torch.ones(1), temperature=0.1)
    assert surer.value.item() == pytest.approx(math.log(2), abs=1e-3)


def test_distil_leaves_out_questions_without_a_readout() -> None:
    letters = torch.randn(2, 3, requires_grad=True)
    scores, options = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    options[1] = False
    use = torch.tensor([True, False])
    mean = distil_choice(letters, scores, options, use, temperature=0.5)
    one = distil_choice(letters[:1], scores[:1], options[:1], use[:1], temperature=0.5)
    torch.testing.assert_close(mean, one)
    none = distil_choice(letters, scores, options, use & ~use, temperature=0.5)
    _zero_with_graph(none, letters)
