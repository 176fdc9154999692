"""Losses against input-agnostic keys: the statistic in small batches, and attention mass."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from kvfix.diagnose.keys.calibration import dependence
from kvfix.mlm.load import Prompt
from kvfix.repair.queries import QueryKeys, key_biases, text_queries
from kvfix.repair.step import StepKeys
from kvfix.repair.terms import mass
from kvfix.repair.terms.dependence import dependence_hinge, input_dependence
from kvfix.repair.terms.mass import SMALL, attention_mass, mass_hinge


def _prompts() -> list[Prompt]:
    return [
        Prompt((tiny.photo(60, 100),), "a cat"),
        Prompt((tiny.photo(60, 100, seed=1),), "dogs?"),
    ]


# --- r --------------------------------------------------------------------------------------------


def _keys(*vectors: list[float]) -> Tensor:
    """k_ISHND of one layer, head and position, a key an image."""
    return torch.tensor(vectors)[:, None, None, None]


def test_dependence_by_hand() -> None:
    # (3, 1) and (3, -1): mean (3, 0), variance over n - 1 is 2, mean square 10.
    keys = _keys([3.0, 1], [3, -1]).requires_grad_()
    r = input_dependence(keys)
    assert r.shape == (1, 1, 1) and r.item() == pytest.approx(2 / 10)
    # By the other form: 1 - mean inner product of two images over the mean square.
    assert r.item() == pytest.approx(1 - (9 - 1) / 10)
    hinge = dependence_hinge(r, floor=0.5)
    assert hinge.item() == pytest.approx(math.log(0.5 / 0.2))
    hinge.backward()
    assert keys.grad is not None
    step = keys.detach() - 0.1 * keys.grad
    assert step[0, 0, 0, 0, 1] > 1 and step[0, 0, 0, 0, 0] < 3  # further apart, shorter mean
    # The second image alone, after the first: the same r, its gradient counted twice over.
    keys.grad = None
    after = input_dependence(keys[1:], earlier_JMD=keys[:1].detach())
    assert after.item() == pytest.approx(2 / 10)
    after.sum().backward()
    alone = keys.grad[1].clone()
    keys.grad = None
    input_dependence(keys).sum().backward()
    torch.testing.assert_close(alone, 2 * keys.grad[1])
    assert input_dependence(_keys([2.0, 2], [2, 2])).item() == 0
    still = _keys([0.0, 0], [0, 0]).requires_grad_()
    input_dependence(still).sum().backward()
    assert still.grad is not None and still.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least two images, found 1"):
        input_dependence(keys[:1])


@pytest.mark.parametrize(("n", "truth"), [(2, 0.2), (2, 0.8), (4, 0.5), (8, 0.2)])
def test_the_estimator_is_right_for_small_batches(n: int, truth: float) -> None:
    """Keys mean + noise with r known; the plain estimate is low by (n - 1) / n."""
    generator = torch.Generator().manual_seed(0)
    positions, width = 4000, 64
    noise = torch.randn(n, 1, 1, positions, width, generator=generator)
    mean = torch.randn(1, 1, positions, width, generator=generator)
    keys = math.sqrt(truth) * noise + math.sqrt(1 - truth) * mean
    r = input_dependence(keys).mean().item()
    assert r == pytest.approx(truth, abs=0.015)
    plain = (keys.var(0, unbiased=False).sum(-1) / keys.square().mean(0).sum(-1)).mean().item()
    assert plain == pytest.approx(truth * (n - 1) / n, abs=0.015)
    # In micro-batches of one image.
    seen = StepKeys()
    for key in keys[:-1]:
        seen.observe(key[None])
    one = input_dependence(keys[-1:], earlier_JMD=seen.k_IMD)
    torch.testing.assert_close(one, input_dependence(keys), atol=1e-5, rtol=1e-5)


def test_keys_that_drift_and_know_no_image_do_not_pass() -> None:
    """Every image of a step has the same key, every step another: r is 0, not large."""
    seen = StepKeys()
    for number in range(3):
        seen.begin(number)
        assert seen.k_IMD is None
        key = torch.full((1, 1, 1, 1, 4), 1.0 + number)
        seen.observe(key)
        assert input_dependence(key, earlier_JMD=seen.k_IMD).item() == 0


def test_a_constant_a_thousand_times_longer_does_not_hide_what_moves() -> None:
    """By differences of large sums float32 would keep nothing of r = 1e-6."""
    generator = torch.Generator().manual_seed(0)
    keys = 1e3 + torch.randn(8, 1, 1, 500, 16, generator=generator)
    seen = StepKeys()
    for key in keys[:-1]:
        seen.observe(key[None])
    found = input_dependence(keys[-1:], earlier_JMD=seen.k_IMD)
    truth = keys.double().var(0).sum(-1) / keys.double().square().sum(-1).mean(0)
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=0)


@pytest.mark.parametrize("r", [1e-6, 1e-3])
def test_the_hinge_pulls_where_a_key_is_most_constant(r: float) -> None:
    """Moving apart by one part in a thousand gains as much, however small r is."""
    off = math.sqrt(r)
    keys = _keys([1.0, off], [1.0, -off]).requires_grad_()
    dependence_hinge(input_dependence(keys), floor=0.1).backward()
    assert keys.grad is not None
    gain = (keys.grad * _keys([0.0, off], [0.0, -off])).sum().item()
    assert gain == pytest.approx(-2, rel=0.01)  # r grows as the square of the distance


def test_it_is_the_statistic_of_the_diagnosis() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 2, 3, 5, 8, generator=generator) + 2
    mean_square = keys.mean(0).square().sum(-1).numpy()
    known = dependence(keys.var(0).sum(-1).numpy(), mean_square, 6)
    torch.testing.assert_close(input_dependence(keys), torch.from_numpy(known))


def test_the_hinge_is_the_mean_over_keys_below_the_floor() -> None:
    r = torch.tensor([0.1, 0.9]).requires_grad_()
    hinge = dependence_hinge(r, floor=0.5)
    assert hinge.item() == pytest.approx(math.log(5) / 2)
    hinge.backward()
    assert r.grad is not None and r.grad.tolist() == pytest.approx([-5, 0])


def test_the_keys_of_a_step_are_kept_until_the_next() -> None:
    seen = StepKeys()
    seen.begin(4)
    seen.observe(_keys([2.0, 0], [4, 0]).requires_grad_())
    seen.begin(4)
    seen.observe(_keys([6.0, 3]))
    assert seen.k_IMD is not None and not seen.k_IMD.requires_grad
    assert seen.k_IMD.flatten().tolist() == [2, 0, 4, 0, 6, 3]
    seen.begin(5)
    assert seen.k_IMD is None


# --- attention ------------------------------------------------------------------------------------


def test_attention_mass_by_hand() -> None:
    # One KV head, one channel, keys log 1, log 2, log 3, log 9; queries 1 at positions 2 and 3.
    keys = torch.tensor([1.0, 2, 3, 9]).log().view(4, 1, 1).requires_grad_()
    queries = torch.ones(2, 1, 1)
    at, real = torch.tensor([2, 3]), torch.tensor([True, True, True, True])
    chosen = torch.tensor([[False, True, False, False]])
    given = {"at_T": at, "real_L": real, "chosen_HL": chosen, "scale": 1.0}
    mass = attention_mass(queries, keys, **given)
    torch.testing.assert_close(mass, torch.tensor([[2 / 6, 2 / 15]]))
    padded = attention_mass(
        queries, keys, **{**given, "real_L": torch.tensor([False, True, True, True])}
    )
    torch.testing.assert_close(padded, torch.tensor([[2 / 5, 2 / 14]]))
    mean = mass_hinge(mass, torch.tensor([True]), ceiling=0.2)
    assert mean.value.item() == pytest.approx((2 / 6 - 0.2) / 2)
    mean.value.backward()
    assert keys.grad is not None and keys.grad[1] > 0 > keys.grad[0] and keys.grad[3] == 0


def test_only_heads_with_a_chosen_key_and_real_keys_have_mass() -> None:
    # Two KV heads of two query heads, keys as above in both; chosen in the second alone.
    keys = torch.tensor([1.0, 2, 3, 9]).log()[:, None, None].repeat(1, 2, 1)
    given = {
        "at_T": torch.tensor([3]),
        "real_L": torch.tensor([False, True, True, True]),
        "chosen_HL": torch.tensor([[False] * 4, [True, True, False, False]]),  # one is padding
        "scale": 1.0,
    }
    mass = attention_mass(torch.ones(1, 4, 1), keys, **given)
    torch.testing.assert_close(mass, torch.tensor([[0], [0], [2 / 14], [2 / 14]]))


def test_heads_without_a_chosen_key_count_for_nothing() -> None:
    mass = torch.tensor([[0.5], [0.5], [0.0], [0.0]], requires_grad=True)  # 4 query, 2 KV heads
    mean = mass_hinge(mass, torch.tensor([True, False]), ceiling=0.1)
    assert mean.value.item() == pytest.approx(0.4) and mean.weight == 1
    none = mass_hinge(mass, torch.tensor([False, False]), ceiling=0.1)
    assert none.value == 0 and none.weight == 0
    none.value.backward()
    assert mass.grad is not None and not mass.grad.any()


@pytest.mark.parametrize("small", [0, SMALL])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", [*tiny.FAMILIES, "llava_glm4", "llava_phi3", "llava_qwen3", "llava_smollm3"]
)
def test_attention_mass_is_the_models_own(name, side, small, load, monkeypatch) -> None:
    """Against the weights that the eager implementation returns."""
    monkeypatch.setattr(mass, "SMALL", small)
    mlm = load(name, attn="eager")
    prompts = [*_prompts(), Prompt((tiny.photo(50, 50),) * 2, "a longer text", prefix="Look: ")]
    encoded = mlm.encode(prompts, padding_side=side)
    with torch.no_grad(), QueryKeys(mlm, encoded, layers=[2, 0]) as reader:
        weights = mlm.base(**encoded.inputs, output_attentions=True).attentions
        read = reader.collect()
    torch.manual_seed(0)
    length = encoded.inputs["input_ids"].shape[1]
    chosen = torch.rand(mlm.n_kv_heads, length) < 0.3
    for layer, samples in read.items():
        for sample, of in enumerate(samples):
            assert torch.equal(of.at_T, text_queries(encoded)[sample]) and len(of.at_T) > 5
            assert int(of.at_T[0]) == int(encoded.images[sample][-1].positions_V.max()) + 1
            for chunk in (4, 1000):
                mass_QT = attention_mass(
                    of.q_TQD,
                    of.k_LHD,
                    at_T=of.at_T,
                    real_L=of.real_L,
                    chosen_HL=chosen,
                    scale=of.scale,
                    chunk=chunk,
                )
                shared = mlm.n_heads // mlm.n_kv_heads
                inside = (
                    weights[layer][sample][:, of.at_T]
                    * chosen.repeat_interleave(shared, 0)[:, None]
                )
                torch.testing.assert_close(mass_QT, inside.sum(-1), atol=1e-5, rtol=1e-4)


def test_chunks_and_the_whole_have_one_gradient(monkeypatch) -> None:
    """And of chunks nothing but their inputs is kept for backward."""
    torch.manual_seed(0)
    start = torch.randn(9, 4, 8), torch.randn(20, 2, 8)
    chosen = torch.rand(2, 20) < 0.3
    found, kept = [], []
    for small in (0, SMALL):
        monkeypatch.setattr(mass, "SMALL", small)
        q_TQD, k_LHD = (x.clone().requires_grad_() for x in start)
        sizes: list[int] = []

        def keep(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            mass_QT = attention_mass(
                q_TQD,
                k_LHD,
                at_T=torch.arange(11, 20),
                real_L=torch.ones(20, dtype=torch.bool),
                chosen_HL=chosen,
                scale=0.3,
                chunk=4,
            )
        kept.append(max(sizes, default=0))
        mass_QT.square().sum().backward()
        found.append((mass_QT, q_TQD.grad, k_LHD.grad))
    for chunked, whole in zip(*found, strict=True):
        assert chunked is not None and chunked.abs().sum() > 0
        torch.testing.assert_close(chunked, whole)
    assert kept[0] <= k_LHD.numel() < 9 * 4 * 20 <= kept[1]


def test_query_hooks_are_gone_and_wrong_use_is_refused(load) -> None:
    mlm = load("llava")
    encoded = mlm.encode(_prompts())
    with torch.no_grad():
        mlm.base.model(**encoded.inputs)

    def hooks() -> int:
        return sum(len(m._forward_hooks) for m in mlm.base.modules())

    before = hooks()
    with QueryKeys(mlm, encoded, layers=[1]) as reader:
        assert hooks() == before + 3
        with pytest.raises(ValueError, match="after a forward pass"):
            reader.collect()
    assert hooks() == before
    with pytest.raises(ValueError, match=r"expected layers 0..2, found \[3\]"):
        QueryKeys(mlm, encoded, layers=[3])
    mlm.config.text_config.sliding_window = 8
    with pytest.raises(ValueError, match="sliding window of 8"):
        QueryKeys(mlm, encoded, layers=[1])
    gemma = load("llava_gemma2")
    with pytest.raises(ValueError, match=r"sliding window of 20 .* layers that see all"):
        QueryKeys(gemma, encoded, layers=[0, 1])
    with pytest.raises(ValueError, match=r"found them soft-capped at 50"):
        QueryKeys(gemma, encoded, layers=[1])
    ahead = load("paligemma")
    with pytest.raises(ValueError, match=r"found paligemma, whose prompts attend to later ones"):
        QueryKeys(ahead, ahead.encode(_prompts()), layers=[1])


def test_key_biases(load) -> None:
    biases = key_biases(load("qwen2_5_vl"), [1])
    bias = biases[1]
    assert list(biases) == [1] and bias is not None and bias.any() and not bias.requires_grad
    # A norm follows Qwen3's bias: no constant is added to the keys that are attended to.
    for name in ("llava", "llava_qwen3"):
        assert key_biases(load(name), [1]) == {1: None}
