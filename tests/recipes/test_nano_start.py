"""Where a nano's weights start, and what moves its matrices."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "nano"))

from initial import take_language
from models import BUILDERS, Nano, build_nano
from muon import Muon, orthogonal
from stages import Pace, Stage, run_stage


def test_words_start_far_enough_apart_not_to_become_the_same(nano: Nano) -> None:
    table_VD = nano.model.get_input_embeddings().weight
    assert float(table_VD.detach().std()) == pytest.approx(0.125, rel=0.03)


def test_heads_that_share_a_key_start_apart(nano: Nano) -> None:
    """Equal ones would have equal gradients, and be one head for ever."""
    for layer in nano.model.model.language_model.layers:
        columns = layer.self_attn.o_proj.weight.unflatten(1, (2, 2, 32)).permute(1, 2, 0, 3)
        for weights in (layer.self_attn.q_proj.weight.unflatten(0, (2, 2, 32)), columns):
            for one, two in weights.detach():
                assert float((one - two).norm() / one.norm()) > 0.2


def test_some_heads_start_by_looking_at_the_tokens_before(nano: Nano) -> None:
    attention = looked_at(nano, words(nano)[:48])
    for head, back in ((2, 1), (3, 2)):
        most_L = attention[0][0, head, 4:].argmax(-1)
        assert (most_L == torch.arange(4, 48) - back).float().mean() > 0.9


def test_a_token_starts_by_looking_for_its_like_and_for_that_of_the_token_before(
    nano: Nano,
) -> None:
    """Words that stand once, and then again in any order."""
    order = np.random.default_rng(0).permutation(16).tolist()
    asked = [*words(nano)[:16], *(words(nano)[i] for i in order)]
    attention = looked_at(nano, asked)
    own_LL, before_LL = attention[1][0, :2]  # of the second layer: the first writes what precedes
    places = [*enumerate(order[:-1], 16)]
    assert sum(int(own_LL[at, :at].argmax()) == i for at, i in places) > 8
    assert sum(int(before_LL[at + 1, :at].argmax()) == i for at, i in places) > 8


def words(nano: Nano) -> list[str]:
    vocabulary = nano.processor.tokenizer.get_vocab()
    return sorted(w for w in vocabulary if w.startswith("\u0120") and len(w) > 4)


def looked_at(nano: Nano, asked: list[str]) -> tuple[torch.Tensor, ...]:
    """What every head of every layer attends to."""
    ids_1L = torch.tensor([nano.processor.tokenizer.convert_tokens_to_ids(asked)])
    nano.model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = nano.model(input_ids=ids_1L, output_attentions=True, use_cache=False).attentions
    nano.model.set_attn_implementation("sdpa")
    return seen


def test_muon_makes_singular_values_alike_and_steps_as_far_as_it_is_told() -> None:
    gradients = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    gradients *= torch.logspace(0, -2, 24)[:, None]
    for matrices in (gradients, gradients.mT):
        values = torch.linalg.svdvals(orthogonal(matrices))
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
        parts = torch.einsum("nrc,nrc->n", matrices, orthogonal(matrices))
        torch.testing.assert_close(parts, torch.linalg.svdvals(matrices).sum(-1), rtol=0.3, atol=0)
    p, still = (torch.nn.Parameter(torch.ones(24, 64)) for _ in "12")
    p.grad = gradients[0].clone()
    muon = Muon([p, still], lr=0.1, weight_decay=0.5, momentum=0.9)
    muon.step()
    assert torch.equal(still, torch.ones(24, 64))
    moved = p.detach() - 0.95
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.25)
    assert float((moved * gradients[0]).sum()) < 0


def test_word_embeddings_do_not_decay(tmp_path: Path) -> None:
    words, norm = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    trained = {"lm.embed_tokens.weight": words, "lm.norm": norm}
    still = Stage("still", 2, 0.1, lambda step: 0 * (words + norm).sum(), str, trained)
    run_stage(still, Pace(1, 0.5, 10, 10, 0), tmp_path / "state.pt")
    assert words.item() == 1 and norm.item() < 1


def _family(nano: Nano) -> str:
    return next(f for f in BUILDERS if nano.model.config.model_type == f)


def test_a_language_model_is_taken_from_a_nano_of_another_family(
    nano: Nano, tmp_path: Path
) -> None:
    """Its layers, and its words by their text: the families number them differently."""
    first = build_nano("llava_onevision", seed=5)
    first.model.save_pretrained(tmp_path)
    first.processor.tokenizer.save_pretrained(tmp_path)
    own = build_nano(_family(nano), seed=0)
    before = own.model.get_input_embeddings().weight.detach().clone()
    take_language(own.model, own.processor.tokenizer, str(tmp_path))
    theirs = dict(first.model.named_parameters())
    for name, weight in own.model.named_parameters():
        if "language_model.layers" in name and name in theirs:
            assert torch.equal(weight, theirs[name])
    table_VD, words = own.model.get_input_embeddings().weight, own.processor.tokenizer.get_vocab()
    for word in (" red", "(", " option"):
        token = word.replace(" ", "\u0120")
        at = first.processor.tokenizer.convert_tokens_to_ids(token)
        assert torch.equal(table_VD[words[token]], first.model.get_input_embeddings().weight[at])
    own_only = [i for w, i in words.items() if w not in first.processor.tokenizer.get_vocab()]
    assert torch.equal(table_VD[own_only], before[own_only])
