"""What exactly each loss term reads of a step: outputs, images, biases, mean keys, points."""

from __future__ import annotations

from dataclasses import replace

import steps
import tiny
import torch
from steps import LAYER

from kvfix.mlm.load import Prompt
from kvfix.repair.extras import Extras, Matches
from kvfix.repair.step import StepKeys
from kvfix.repair.terms.correspondence import near_cells


def test_mask_categories_train_their_own_output(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only("mask", outputs=3), steps.prompts()
    knows = steps.extras(mlm, given)
    knows = [replace(e, masks=(e.masks[0]._replace(category=2),)) for e in knows]
    heads = steps.heads_of(mlm, losses)
    step = steps.make_step(mlm, losses, given, knows)
    steps.mean_of("mask", losses, step, heads).value.backward()
    grad = heads["mask"].weight.grad
    assert not grad[:, :2].any() and grad[:, 2].any()


def test_dependence_reads_first_images_of_the_calibrated_size(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava_onevision"))
    losses = steps.only("dependence", floor=1.0)
    alone = steps.prompts(images=1)  # tiled: many tokens
    paired = steps.prompts(images=2)
    odd = Prompt((tiny.photo(64, 64),), "square")
    weights = {}
    for name, given in {
        "two": alone,
        "one": alone[:1],
        "one_and_odd": [alone[0], odd],
        "pairs": paired,
    }.items():
        step = steps.make_step(mlm, losses, given, [Extras()] * len(given))
        step = replace(step, agnostic_SHV=steps.agnostic(mlm, alone))
        mean = steps.mean_of("dependence", losses, step, steps.heads_of(mlm, losses))
        assert mean.value.requires_grad
        weights[name] = float(mean.weight)
    assert weights == {"two": 2, "one": 0, "one_and_odd": 0, "pairs": 0}


def test_dependence_reads_the_chosen_cells_alone(checkpoint) -> None:
    """Written out, head by head, on a tiled image: newlines and the base tile are no cells."""
    mlm = steps.tuned(checkpoint("llava_onevision"))
    losses, given = steps.only("dependence", floor=1.0), steps.prompts(images=1)
    step = steps.make_step(mlm, losses, given, [Extras()] * len(given))
    found = steps.mean_of("dependence", losses, step, steps.heads_of(mlm, losses)).value
    keys = torch.stack([of.images[0]["key"][0].flatten(0, 1) for of in step.features]).double()
    bias = mlm.key_bias(LAYER)
    keys = keys if bias is None else keys - bias
    chosen = steps.agnostic(mlm, given)[LAYER][:, step.features[0].layouts[0].index_HW.flatten()]
    below = []
    for head, of_head in enumerate(keys.detach().split(mlm.head_dim, dim=-1)):
        for cell in chosen[head].nonzero().flatten():
            of_cell = of_head[:, cell]
            r = of_cell.var(0).sum() / of_cell.square().sum(-1).mean()
            below.append((-r.log()).clamp(min=0))
    assert 0 < len(below) < chosen.numel()
    torch.testing.assert_close(found.double(), torch.stack(below).mean(), atol=1e-5, rtol=1e-4)


def test_dependence_of_pairs_is_that_of_their_first_images(checkpoint) -> None:
    mlm, losses = steps.tuned(checkpoint("llava")), steps.only("dependence", floor=1.0)
    found = []
    for images in (1, 2):
        given = steps.prompts(images=images)
        step = steps.make_step(mlm, losses, given, [Extras()] * len(given))
        found.append(steps.mean_of("dependence", losses, step, steps.heads_of(mlm, losses)))
    assert found[0].weight > 0
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_dependence_subtracts_the_bias_in_the_statistic(checkpoint) -> None:
    """A large constant on every key must not make them look input-agnostic."""
    mlm = steps.tuned(checkpoint("qwen2_5_vl"))
    losses, given = steps.only("dependence", floor=1.0), steps.prompts()
    knows, heads = steps.extras(mlm, given), steps.heads_of(mlm, losses)
    before = steps.mean_of(
        "dependence", losses, steps.make_step(mlm, losses, given, knows), heads
    ).value
    with torch.no_grad():
        mlm.key_bias(LAYER).add_(30.0)
    step = steps.make_step(mlm, losses, given, knows)
    after = steps.mean_of("dependence", losses, step, heads).value
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    blind = replace(step, key_bias={LAYER: None}, earlier=StepKeys())
    left = steps.mean_of("dependence", losses, blind, heads).value
    assert left > after + 0.1


def test_dependence_of_one_image_is_held_against_those_before_it(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"))
    losses, given = steps.only("dependence", floor=1.0), steps.prompts(3, images=1)
    heads, seen, found = steps.heads_of(mlm, losses), StepKeys(), []
    for number, n in ((0, 0), (0, 1), (1, 2)):  # two of one step, one of the next
        seen.begin(number)
        step = steps.make_step(mlm, losses, given[n : n + 1], [Extras()], earlier=seen)
        found.append(steps.mean_of("dependence", losses, step, heads))
    assert [float(mean.weight) > 0 for mean in found] == [False, True, False]
    together = steps.make_step(mlm, losses, given[:2], [Extras()] * 2)
    both = steps.mean_of("dependence", losses, together, heads).value
    torch.testing.assert_close(found[1].value, both, rtol=1e-4, atol=1e-4)
    found[1].value.backward()
    assert mlm.layer(LAYER).self_attn.k_proj.lora_B.default.weight.grad.any()


def test_correspondence_is_both_ways_at_the_matched_points(checkpoint) -> None:
    """Against the loss written out, at points that lie on cells of two images of two sizes."""
    mlm = steps.tuned(checkpoint("qwen2_5_vl"))
    given = [Prompt((tiny.photo(40, 60), tiny.photo(60, 40, seed=1)), "a cat")]
    at = (torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([[4.0, 0.0], [5.0, 3.0]]))
    matches = Matches((0, 1), at, torch.tensor([True, True]))
    losses = steps.only("correspondence", temperature=0.5)
    step = steps.make_step(mlm, losses, given, [Extras(matches=(matches,))])
    mean = steps.mean_of("correspondence", losses, step, steps.heads_of(mlm, losses))
    images = [of["value"][0].detach() for of in step.features[0].images]
    assert images[0].shape[:2] != images[1].shape[:2]
    by_hand = []
    for own, other in ((0, 1), (1, 0)):
        cells = torch.nn.functional.normalize(images[other].flatten(0, 1), dim=-1)
        for here, there in zip(at[own].long(), at[other].long(), strict=True):
            point = torch.nn.functional.normalize(images[own][here[0], here[1]], dim=0)
            match = int(there[0] * images[other].shape[1] + there[1])
            by_hand.append(
                torch.nn.functional.cross_entropy(cells @ point / 0.5, torch.tensor(match))
            )
    assert mean.weight == 4
    torch.testing.assert_close(mean.value, torch.stack(by_hand).mean(), atol=1e-5, rtol=1e-4)


def test_near_cells_are_those_a_sample_is_made_of() -> None:
    at = torch.tensor([[0.0, 1.0], [0.5, 1.25], [-3.0, 9.0]])
    near = near_cells(at, (2, 3)).view(3, 2, 3).int().tolist()
    assert near == [
        [[0, 1, 0], [0, 0, 0]],
        [[0, 1, 1], [0, 1, 1]],
        [[0, 0, 1], [0, 0, 0]],
    ]
