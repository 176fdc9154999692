"""Anchors: values by hand, chunks that change nothing, and the base model inside the tuned one."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from kvfix.mlm.capture import extract
from kvfix.mlm.load import Prompt, load_mlm
from kvfix.repair.base_pass import logits_at, run_base
from kvfix.repair.lora import LoraOptions, attach
from kvfix.repair.terms.gram import gram_anchor
from kvfix.repair.terms.kl import kl_anchor
from kvfix.repair.terms.mean import sum_over_rows


def test_kl_by_hand() -> None:
    base = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [5.0, 0.0]])
    tuned = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [-7.0, 1.0]], requires_grad=True)
    by_hand = [
        0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5),
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
    ]
    keep = torch.tensor([True, True, False])
    mean = kl_anchor(tuned, base, keep)
    assert mean.value.item() == pytest.approx(sum(by_hand) / 2)
    mean.value.backward()
    assert tuned.grad is not None and not tuned.grad[2].any()
    torch.testing.assert_close(tuned.grad[0], torch.tensor([-0.25, 0.25]) / 2)
    assert kl_anchor(base, base, keep).value == 0


def test_kl_without_a_position_is_zero_with_a_graph() -> None:
    for rows in (3, 0):
        tuned = torch.randn(rows, 5, requires_grad=True)
        mean = kl_anchor(tuned, torch.randn(rows, 5), torch.zeros(rows))
        assert mean.value == 0 and mean.weight == 0
        mean.value.backward()
        assert tuned.grad is not None and not tuned.grad.any()
    with pytest.raises(ValueError, match=r"logits of the same positions, found \(3, 5\) tuned"):
        kl_anchor(torch.zeros(3, 5), torch.zeros(2, 5), torch.ones(3))


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_chunks_change_neither_value_nor_gradient(chunk: int) -> None:
    torch.manual_seed(0)
    base, keep = torch.randn(7, 11), torch.rand(7)
    still = torch.randn(2, 9, 4)
    for shape, anchor in (
        ((7, 11), lambda x, c: kl_anchor(x, base, keep, chunk=c)),
        ((2, 9, 4), lambda x, c: gram_anchor(x, still, [4, 5], chunk=c)),
    ):
        torch.manual_seed(1)
        whole = torch.randn(shape, requires_grad=True)
        parts = whole.detach().clone().requires_grad_()
        one, many = anchor(whole, 1000).value, anchor(parts, chunk).value
        torch.testing.assert_close(one, many)
        one.backward()
        many.backward()
        torch.testing.assert_close(whole.grad, parts.grad)


def test_only_one_chunk_is_alive() -> None:
    """Of 64 rows of 50,000 words, the float32 copies of 4 rows at a time."""
    rows, words, chunk = 64, 50_000, 4
    largest = 0

    def total(x: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return x.float().log_softmax(-1).sum()

    x = torch.zeros(rows, words, dtype=torch.bfloat16, requires_grad=True)
    saved = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            saved += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = sum_over_rows(total, (x,), chunk=chunk)
    assert largest == chunk * words
    assert saved < chunk * words  # without recomputing: 4 bytes for each of rows * words
    out.backward()


def test_gram_by_hand() -> None:
    # Base: two cells at a right angle; tuned: the same direction. The off-diagonal pair counts
    # twice of four.
    base = torch.tensor([[[1.0, 0], [0, 1]]])
    tuned = torch.tensor([[[2.0, 0], [3, 0]]], requires_grad=True)
    assert gram_anchor(tuned, base, [2]).value.item() == pytest.approx(2 / 4)
    # Turned and scaled as a whole, nothing changes.
    turned = 7 * base @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    assert gram_anchor(turned, base, [2]).value.abs() < 1e-12
    assert gram_anchor(base, turned, [2]).value.abs() < 1e-12
    moved = torch.tensor([[[1.0, 0.5], [0, 1]]], requires_grad=True)
    gram_anchor(moved, base, [2]).value.backward()
    assert moved.grad is not None and moved.grad[0, 0, 1] > 0  # back to the right angle


def test_gram_pairs_stay_inside_an_image() -> None:
    torch.manual_seed(0)
    v, base = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 3)
    both = gram_anchor(v, base, [2, 3])
    one, two = gram_anchor(v[:, :2], base[:, :2], [2]), gram_anchor(v[:, 2:], base[:, 2:], [3])
    torch.testing.assert_close(both.value, (one.value + two.value) / 2)
    assert both.weight == 2
    none = gram_anchor(v[:, :0], base[:, :0], [])
    assert none.value == 0 and none.weight == 0
    none.value.backward()
    assert v.grad is not None and not v.grad.any()
    with pytest.raises(ValueError, match="values at the same cells"):
        gram_anchor(v, base[:, :4], [5])


# --- the base model inside the tuned one ----------------------------------------------------------


def _prompts() -> list[Prompt]:
    return [Prompt((tiny.photo(60, 100),), "a cat"), Prompt((tiny.photo(64, 64),), "two dogs?")]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_run_base_is_the_model_before_the_adapter(name, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(name)))
    encoded = mlm.encode(_prompts())
    length = encoded.inputs["input_ids"].shape[1]
    rows = torch.tensor([length - 2, length - 1, 2 * length - 1])  # padding is on the left
    with torch.no_grad():
        before = mlm.base(**encoded.inputs).logits.flatten(0, 1)[rows]
    values = extract(mlm, _prompts(), sites=["value"], layers=[1])
    tuned = attach(mlm, LoraOptions(rank=2, dropout=0.5)).mlm
    for parameter in tuned.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    asked = [p.requires_grad for p in tuned.model.parameters()]
    count = sum(p.numel() for p in tuned.model.parameters())
    tuned.model.train()
    base = run_base(tuned, encoded, rows_N=rows, sites=["value"], layers=[1])
    assert base.logits_NW is not None and base.features is not None
    torch.testing.assert_close(base.logits_NW, before)
    for was, now in zip(values, base.features, strict=True):
        assert torch.equal(was.images[0]["value"], now.images[0]["value"])
    assert not base.logits_NW.requires_grad
    # Everything is as it was: training mode, what is trained, and no second copy of the weights.
    assert tuned.model.training and all(m.training for m in tuned.model.modules())
    assert [p.requires_grad for p in tuned.model.parameters()] == asked
    assert sum(p.numel() for p in tuned.model.parameters()) == count
    tuned.model.eval()
    hidden = tuned.base.model(**encoded.inputs).last_hidden_state
    after = logits_at(tuned, hidden, rows)
    assert after.requires_grad and not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, tuned.model(**encoded.inputs).logits.flatten(0, 1)[rows])


def test_run_base_leaves_a_frozen_adapter_frozen(checkpoint, tmp_path) -> None:
    tuned = attach(load_mlm(str(checkpoint("llava"))), LoraOptions(rank=2)).mlm
    for parameter in tuned.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    tuned.model.save_pretrained(tmp_path)
    frozen = load_mlm(str(checkpoint("llava")), adapter=str(tmp_path))
    run_base(frozen, frozen.encode(_prompts()), sites=["value"])
    assert not any(p.requires_grad for p in frozen.model.parameters() if p.is_floating_point())


def test_run_base_wants_an_adapter_and_positions(checkpoint) -> None:
    mlm = load_mlm(str(checkpoint("llava")))
    encoded = mlm.encode(_prompts())
    with pytest.raises(ValueError, match="expected a model with an adapter"):
        run_base(mlm, encoded)
    with pytest.raises(ValueError, match="at least one position"):
        logits_at(mlm, torch.zeros(1, 2, 32), torch.tensor([], dtype=torch.long))
