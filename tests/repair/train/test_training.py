"""The trainer's parts, in process: batches, amounts, micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import steps
import tiny
import torch
from talks import HEIGHT, WIDTH, write_talks

from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import (
    NO_OUTPUT,
    Example,
    Mask,
    Turn,
    conversation_examples,
    scene_examples,
)
from kvfix.data.training.mix import SceneMix, Shares
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.batch import Batch, Collator
from kvfix.repair.key_choice import ChosenKeys
from kvfix.repair.module import Repair
from kvfix.repair.terms.losses import Losses

MIX = SceneMix(Shares(question=9))
FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
READ = ("mask", "text_value", "correspondence", "gram", "distil", "kl", "evidence")


def collator(mlm: Mlm) -> Collator:
    return Collator(mlm.processor, mlm.config, mlm.family, choices=True)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Text alone; one image, its labels; two images; a choice among three."""
    folder = tmp_path_factory.mktemp("talks")
    return list(conversation_examples(read_conversations(write_talks(folder, 4))))


def losses_of(*names: str, **changed: Any) -> Losses:
    """These terms at LAYER, each of another weight."""
    losses = steps.only(*(name for name in names if name != "evidence"), **changed)
    if "evidence" in names:
        term = replace(losses.evidence, weight=1.0, layers=(2,), source=0)
        losses = replace(losses, evidence=term)
    for number, name in enumerate(names):
        term = replace(getattr(losses, name), weight=0.5 + 0.25 * number)
        losses = replace(losses, **{name: term})
    return replace(losses, mask=replace(losses.mask, outputs=8))  # kinds of the scenes


# --- batches --------------------------------------------------------------------------------------


def said(mlm: Mlm, ids: torch.Tensor) -> str:
    return mlm.processor.tokenizer.decode(ids)


@FAMILIES
def test_answers_are_labelled_to_their_end_and_nothing_else(family, checkpoint, examples) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    batch = collator(mlm)(examples)
    ids_N = batch.encoded.inputs["input_ids"].flatten()
    assert torch.equal(ids_N[batch.rows_R + 1], batch.target_R)
    assert torch.equal(batch.rows_R, batch.rows_R.unique())
    assert not (batch.answer_R & batch.text_R).any() and (batch.answer_R | batch.text_R).all()
    length = batch.encoded.inputs["input_ids"].shape[1]
    for b, example in enumerate(examples):
        own_R = batch.rows_R // length == b
        answers = "".join(f"{turn.answer}<|im_end|>" for turn in example.turns if turn.answer)
        assert said(mlm, batch.target_R[own_R & batch.answer_R]) == answers
        text = said(mlm, batch.target_R[own_R & batch.text_R])
        assert all(part in text for turn in example.turns for part in turn.user if part)
        assert not any(f"{t.answer}<" in text for t in example.turns if t.answer)
        # All of the text is there but for its first token.
        whole = mlm.processor.tokenizer(batch.encoded.order_texts[b])["input_ids"]
        image = mlm.config.image_token_id
        marks = 0 if example.images else len(whole) - tokens_before_stand_in(mlm, example)
        assert own_R.sum() == sum(token != image for token in whole[: len(whole) - marks]) - 1


def tokens_before_stand_in(mlm: Mlm, example: Example) -> int:
    """Of the conversation as the template prints it."""
    messages = []
    for turn in example.turns:
        for role, text in (("user", turn.user[0]), ("assistant", turn.answer)):
            messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    return len(mlm.processor.tokenizer(mlm.processor.apply_chat_template(messages))["input_ids"])


@FAMILIES
def test_the_users_last_token_is_where_a_prompt_says_it(family, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    wide, tall = tiny.photo(60, 100), tiny.photo(150, 70)
    prompts = [Prompt((wide,), "a cat"), Prompt((tall, wide), "two dogs?"), Prompt((tall,), "é")]
    expected = mlm.encode(prompts, padding_side="right")
    examples = [
        Example(str(i), p.images, (Turn((*[None] * len(p.images), p.text), "Yes."),))
        for i, p in enumerate(prompts)
    ]
    found = collator(mlm)(examples).encoded
    assert torch.equal(found.text_end_B, expected.text_end_B)
    for ours, theirs in zip(found.images, expected.images, strict=True):
        assert [s.first_row for s in ours] == [s.first_row for s in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.positions_V, b.positions_V)


@FAMILIES
def test_a_stand_in_image_is_unseen_by_the_text(family, checkpoint, examples) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    text = examples[0]
    assert not text.images
    batch = collator(mlm)([text, examples[1]])  # padded, too
    assert batch.extras[0].stand_in and not batch.extras[1].stand_in and batch.n_images == 1
    length = batch.encoded.inputs["input_ids"].shape[1]
    rows = batch.rows_R[batch.rows_R < length]
    n = tokens_before_stand_in(mlm, text)
    assert rows.max() == n - 2  # predicts the last token of the text
    assert batch.encoded.images[0][0].positions_V.min() >= n
    with torch.no_grad():
        found = mlm.model(**batch.encoded.inputs).logits[0, rows]
        ids_1L = batch.encoded.inputs["input_ids"][:1, :n]
        alone = mlm.model(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L)).logits[0, rows]
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


@FAMILIES
def test_the_row_of_a_letter_predicts_it(family, checkpoint, examples) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    scenes = [e for e in scene_examples("train", 12, MIX) if e.question is not None][:2]
    given = [examples[1], examples[-1], *scenes]  # rows of others come before
    batch = collator(mlm)(given)
    assert batch.extras[0].choice is None
    for example, extras in zip(given[1:], batch.extras[1:], strict=True):
        question = example.question
        assert question is not None and extras.choice is not None
        letters = "ABCDE"[: len(question.choices)]
        assert said(mlm, extras.choice.letters_O) == letters
        target = batch.target_R[extras.choice.row]
        assert target == extras.choice.letters_O[question.answer]
        assert batch.answer_R[extras.choice.row]
    bare = replace(collator(mlm), choices=False)(given)
    assert all(extras.choice is None for extras in bare.extras)


def test_what_cannot_be_printed_is_refused(checkpoint, examples) -> None:
    mlm = load_mlm(str(checkpoint("llava")))
    one = examples[1]
    wrong = {
        "one placeholder for each of 1 images, found 0": replace(one, turns=(Turn(("x",), "y"),)),
        "all but the last have an answer": replace(
            one, turns=(Turn((None, "x"), ""), Turn(("y",), "z"))
        ),
        "text without the placeholder '<image>'": replace(
            one, turns=(Turn((None, "an <image>"), "y"),)
        ),
    }
    for says, example in wrong.items():
        with pytest.raises(ValueError, match=says):
            collator(mlm)([example])
    template = mlm.processor.chat_template
    thinking = "<|im_start|>assistant\n<think>{% endif %}"
    mlm.processor.chat_template = template.replace("<|im_start|>assistant\n{% endif %}", thinking)
    assert mlm.processor.chat_template != template
    with pytest.raises(ValueError, match="assistant turn begins as its generation prompt does"):
        collator(mlm)([one])


# --- the loss of a micro-batch --------------------------------------------------------------------


def odd(examples: list[Example]) -> list[Example]:
    """Examples whose masks count for little: void, empty, without a head."""
    void, empty, half = (np.full((HEIGHT, WIDTH), n, np.uint8) for n in (255, 0, 255))
    half[:, : WIDTH // 2] = 1
    kinds = {
        "void": Mask(0, void, 0, True),
        "empty": Mask(0, empty, 0, True),
        "half": Mask(0, half, 0, True),
        "headless": Mask(0, half, NO_OUTPUT, True),
        "unnamed": Mask(0, half, 0, False),
    }
    return [replace(examples[1], id=name, masks=(mask,)) for name, mask in kinds.items()]


def passed(repair: Repair, batch: Batch, *, number: int = 0) -> torch.Tensor:
    """(T, 2) totals and weights."""
    amount_T = torch.tensor(repair.amounts(batch))
    return repair(batch, number, amount_T, 1.0)[1]


@FAMILIES
def test_amounts_of_a_batch_are_the_weights_of_its_losses(family, checkpoint, examples) -> None:
    mlm = steps.tuned(checkpoint(family))
    repair = Repair(mlm, losses_of(*READ), lm=1.0, seed=0)
    assert repair.names[0] == "lm" and set(repair.names[1:]) == set(READ)
    scenes = scene_examples("train", 12, MIX)
    batches = [[*examples, *odd(examples)], examples[:1], [scenes[10], scenes[11]]]
    known = set()
    for given in batches:
        batch = collator(mlm)(given)
        amounts = repair.amounts(batch)
        weights = passed(repair, batch)[:, 1].tolist()
        for name, amount, weight in zip(repair.names, amounts, weights, strict=True):
            assert not np.isnan(amount) and weight == pytest.approx(amount), name
            known |= {name} if amount else set()
    assert known == set(repair.names)


def suppressing(mlm: Mlm, *names: str, batch: Batch) -> Repair:
    """These terms on some keys at the size of the batch's first image."""
    layout = batch.encoded.images[0][0].layout
    shape = (mlm.n_layers, mlm.n_kv_heads, layout.n_tokens)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    chosen[:, 0] = False  # a head without one
    keys = ChosenKeys(chosen, layout.index_HW.numel(), 0.1, 0.0, "some keys")
    losses = losses_of(*names)
    losses = replace(losses, dependence=replace(losses.dependence, floor=1.0))
    losses = replace(losses, mass=replace(losses.mass, ceiling=0.0))
    return Repair(mlm, losses, lm=1.0, seed=0, keys=keys)


@FAMILIES
def test_amounts_of_suppression_are_its_weights(family, checkpoint, examples) -> None:
    mlm = steps.tuned(checkpoint(family))
    text, one, cat, _, two, choice = examples
    batch = collator(mlm)([one, text, cat, two, choice])
    repair = suppressing(mlm, "dependence", "mass", batch=batch)
    amounts = repair.amounts(batch)
    assert all(amounts) and passed(repair, batch)[:, 1].tolist() == pytest.approx(amounts)
    # Alone it has nothing to be held against; text and pictures of other sizes count for nothing.
    alone = collator(mlm)([one])
    assert [*repair.amounts(alone)][1] == 1 and passed(repair, alone, number=1)[1].tolist() == [
        0,
        0,
    ]
    assert repair.amounts(collator(mlm)([text]))[1:3] == [0, 0]


@pytest.mark.parametrize("term", ["dependence", "mass"])
def test_suppression_in_micro_batches(term, checkpoint, examples) -> None:
    """`mass` to the digit; r of one image after another is near that of the whole."""
    mlm = steps.tuned(checkpoint("llava"))
    _, one, _, _, two, choice = examples  # of three first images
    given = [one, two, choice] * 4
    whole = collator(mlm)(given)
    repair = suppressing(mlm, term, batch=whole)
    repair.lm = 0.0
    found = []
    for batches in ([whole], [collator(mlm)([example]) for example in given]):
        amount_T = torch.tensor([repair.amounts(batch) for batch in batches]).sum(0)
        for batch in batches:
            loss, _ = repair(batch, len(batches), amount_T, 1.0)
            loss.backward()
        found.append(torch.cat([g.flatten() for g in gradients(repair).values()]))
    if term == "dependence":
        cosine = torch.nn.functional.cosine_similarity(*found, dim=0)
        assert cosine > 0.9 and 0.7 < found[1].norm() / found[0].norm() < 1.4
    else:
        assert found[0].any()
        torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-3)


def gradients(repair: Repair) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in repair.named_parameters() if p.grad is not None}
    repair.zero_grad()
    return found


@pytest.mark.parametrize("term", [*READ, "lm", "all"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_micro_batches_have_the_gradient_of_the_whole(term, family, checkpoint, examples) -> None:
    mlm = steps.tuned(checkpoint(family))
    names = READ if term == "all" else () if term == "lm" else (term,)
    repair = Repair(mlm, losses_of(*names), lm=1.0 * (term in ("lm", "all")), seed=0)
    text, one, cat, dog, two, choice = examples
    given = [one, cat, two, choice, text, one, dog, cat, two, two, choice, choice]
    halves = [collator(mlm)(part) for part in (given[:4], given[4:])]  # the second has twice all
    amount_T = torch.tensor([repair.amounts(batch) for batch in halves]).sum(0)
    found = []
    for batches in ([collator(mlm)(given)], halves):
        losses = []
        for batch in batches:
            loss, _ = repair(batch, 0, amount_T, 1.0)
            loss.backward()
            losses.append(loss.detach())
        found.append((sum(losses), gradients(repair)))
    (whole_loss, whole), (loss, grads) = found
    assert whole_loss > 0
    torch.testing.assert_close(loss, whole_loss, atol=1e-5, rtol=1e-5)
    largest = max(float(grad.abs().max()) for grad in whole.values())
    assert largest > 0
    for name, grad in whole.items():
        torch.testing.assert_close(grads[name], grad, atol=1e-4 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_float32_adapter_multiplies_in_its_models_bfloat16(
    checkpointing, checkpoint, examples
) -> None:
    """Nothing of it in float32 but weights and gradients, which are near those of float32."""
    found, seen = {}, []
    for dtype in (torch.float32, torch.bfloat16):
        mlm = steps.tuned(checkpoint("llava_onevision"), dtype=dtype)
        if checkpointing:
            recompute_layers(mlm.model.train())
        repair = Repair(mlm, losses_of(*READ), lm=1.0, seed=0)
        adapters = [m for n, m in repair.named_modules() if "lora_" in n and "default" in n]
        for module in adapters:
            module.register_forward_hook(
                lambda m, args, out: seen.append((args[0].dtype, out.dtype))
            )
        batch = collator(mlm)(examples).moved(mlm.device, dtype)
        loss, _ = repair(batch, 0, torch.tensor(repair.amounts(batch)), 1.0)
        before_backward = len(seen)
        loss.backward()
        assert (len(seen) > before_backward) == checkpointing
        assert set(seen) == {(dtype, dtype)}
        seen.clear()
        gradient = gradients(repair)
        assert {g.dtype for name, g in gradient.items() if "lora_" in name} == {torch.float32}
        found[dtype] = torch.cat([g.flatten() for n, g in gradient.items() if "lora_" in n])
    exact, rounded = found.values()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98


@FAMILIES
def test_a_fresh_adapter_answers_as_the_base_does_in_bfloat16(family, checkpoint, examples) -> None:
    """To the bit: else the anchors would pull the model away from itself."""
    mlm = steps.tuned(checkpoint(family), spread=0.0, dtype=torch.bfloat16)
    repair = Repair(mlm, losses_of("kl", "gram"), lm=1.0, seed=0)
    batch = collator(mlm)(examples).moved(mlm.device, torch.bfloat16)
    totals = dict(zip(repair.names, passed(repair, batch)[:, 0].tolist(), strict=True))
    assert totals["lm"] > 0 and totals["kl"] == totals["gram"] == 0


def test_an_anchor_every_few_steps_pulls_as_much(checkpoint, examples) -> None:
    """As many times the weight in its steps, and no pass of the base in between."""
    often, seldom = steps.only("kl", "gram"), steps.only("kl", "gram", every=4)
    for name in ("kl", "gram"):
        weights = [getattr(seldom, name).weight_at(step) for step in range(8)]
        assert weights == [4.0, 0, 0, 0] * 2
        assert sum(weights) == sum(getattr(often, name).weight_at(step) for step in range(8))
    mlm = steps.tuned(checkpoint("llava"))
    repair = Repair(mlm, seldom, lm=1.0, seed=0)
    batch = collator(mlm)(examples[1:3])
    passes = []
    handle = mlm.base.model.register_forward_hook(lambda *_: passes.append(1))
    tables = {number: passed(repair, batch, number=number) for number in (0, 1, 4)}
    handle.remove()
    assert len(passes) == 2 + 1 + 2
    assert tables[0][1:, 1].all() and not tables[1].any(1)[1:].any()
    torch.testing.assert_close(tables[4], tables[0])


def test_a_layer_that_does_not_exist_and_no_loss_at_all_are_refused(checkpoint) -> None:
    mlm = steps.tuned(checkpoint("llava"))
    losses = replace(Losses(), mask=replace(Losses().mask, weight=1.0, layers=(1, 3)))
    with pytest.raises(ValueError, match=r"layers 0..2 in losses, found \[3\]"):
        Repair(mlm, losses, lm=1.0, seed=0)
    with pytest.raises(ValueError, match="expected a loss of weight above 0"):
        Repair(mlm, Losses(), lm=0.0, seed=0)
    with pytest.raises(ValueError, match="expected the keys to suppress"):
        Repair(mlm, steps.only("mass"), lm=1.0, seed=0)
