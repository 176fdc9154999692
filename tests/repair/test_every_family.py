"""Every family: modules of the real models, five steps, one diagnosed unit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import steps
import tiny
import torch
from commands import call
from places import CONFIGS
from trainings import recipe, train
from transformers import AutoConfig

from kvfix.data.training.examples import Example, Turn
from kvfix.mlm.capture import extract
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.repair.batch import Collator
from kvfix.repair.dry_run import skeleton
from kvfix.repair.lora import LoraOptions, match_modules
from kvfix.repair.terms.losses import Losses

_QKVO = tuple(f"self_attn.{x}_proj" for x in "qkvo")
_PLAIN = (*_QKVO, *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
_SIGLIP = (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_IDEFICS = ("model.connector.modality_projection.proj",)
_QWEN3 = ("model.visual.merger.linear_fc1", "model.visual.merger.linear_fc2")
_QWEN3_BLOCK = ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")

# Parameters; then the language model's layers and what is adapted in one, those of the vision
# tower, and the projector. The parameters of Qwen3-VL, SmolVLM2 and SmolVLM are the published ones
# to the last; those of InternVL3.5 and Gemma 3 round to what their cards say (8.5 and 4.3 billion);
# PaliGemma 2's and GLM-4.1V's were not compared.
# Not confirmed word for word in the configs: the language model of InternVL3.5 (here Qwen3-8B's),
# that of PaliGemma 2 (Gemma 2 2B's), and `rope_theta` and `image_token_id` of SmolVLM2-2.2B (those
# of SmolLM2-1.7B and of SmolVLM2-500M), on which no shape depends.
REAL = [
    (
        "Qwen3-VL-4B-Instruct",
        4_437_815_808,
        ("model.language_model.layers", 36, _PLAIN),
        ("model.visual.blocks", 24, _QWEN3_BLOCK),
        _QWEN3,
    ),
    (
        "Qwen3-VL-8B-Instruct",
        8_767_123_696,
        ("model.language_model.layers", 36, _PLAIN),
        ("model.visual.blocks", 27, _QWEN3_BLOCK),
        _QWEN3,
    ),
    (
        "InternVL3_5-8B-HF",
        8_528_318_464,
        ("model.language_model.layers", 36, _PLAIN),
        (
            "model.vision_tower.encoder.layer",
            24,
            (
                *(f"attention.{x}_proj" for x in "qkv"),
                "attention.projection_layer",
                "mlp.fc1",
                "mlp.fc2",
            ),
        ),
        ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
    ),
    (
        "gemma-3-4b-it",
        4_300_079_472,
        ("model.language_model.layers", 34, _PLAIN),
        ("model.vision_tower.encoder.layers", 27, _SIGLIP),
        (),
    ),
    (
        "SmolVLM2-2.2B-Instruct",
        2_246_784_880,
        ("model.text_model.layers", 24, _PLAIN),
        ("model.vision_model.encoder.layers", 27, _SIGLIP),
        _IDEFICS,
    ),
    (
        "SmolVLM-256M-Instruct",
        256_484_928,
        ("model.text_model.layers", 30, _PLAIN),
        ("model.vision_model.encoder.layers", 12, _SIGLIP),
        _IDEFICS,
    ),
    (
        "paligemma2-3b-pt-224",
        3_032_242_416,
        ("model.language_model.layers", 26, _PLAIN),
        ("model.vision_tower.encoder.layers", 27, _SIGLIP),
        ("model.multi_modal_projector.linear",),
    ),
    (
        "GLM-4.1V-9B-Thinking",
        10_292_777_472,
        ("model.language_model.layers", 40, (*_QKVO, "mlp.gate_up_proj", "mlp.down_proj")),
        (
            "model.visual.blocks",
            24,
            ("attn.qkv", "attn.proj", *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))),
        ),
        tuple(f"model.visual.merger.{x}" for x in ("proj", "gate_proj", "up_proj", "down_proj")),
    ),
]


def _names(path: str, count: int, inside: tuple[str, ...]) -> set[str]:
    return {f"{path}.{i}.{name}" for i in range(count) for name in inside}


@pytest.mark.parametrize(("name", "parameters", "lm", "vision", "projector"), REAL)
def test_adapters_change_the_meant_modules_of_the_real_models(
    name, parameters, lm, vision, projector
) -> None:
    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    mlm = skeleton(config, name=name, dtype=torch.bfloat16)
    assert sum(p.numel() for p in mlm.base.parameters()) == parameters
    found = match_modules(mlm, LoraOptions(parts=("lm", "vision")))
    assert set(found["lm"]) == _names(*lm) and set(found["vision"]) == _names(*vision)
    if not projector:
        with pytest.raises(ValueError, match="expected modules of the projector to adapt, found"):
            match_modules(mlm, LoraOptions(parts=("projector",)))
        return
    assert set(match_modules(mlm, LoraOptions(parts=("projector",)))["projector"]) == set(projector)


@cache
def _example(images: int) -> Example:
    pictures = (tiny.photo(60, 100), tiny.photo(150, 70))[:images]
    asked = Turn((*[None] * images, "What is this, and where?"), "A cat, on a mat.")
    return Example(str(images), pictures, (asked, Turn(("And now?",), "Gone.")))


@pytest.mark.parametrize("name", tiny.MORE)
def test_answers_are_labelled_and_images_are_where_a_prompt_has_them(name, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(name)))
    batch = Collator(mlm.processor, mlm.config, mlm.family)([_example(1), _example(2)])
    ids_BL = batch.encoded.inputs["input_ids"]
    length = ids_BL.shape[1]
    assert torch.equal(ids_BL.flatten()[batch.rows_R + 1], batch.target_R)
    decode = mlm.processor.tokenizer.decode
    for b in range(2):
        own_R = batch.rows_R // length == b
        end = mlm.processor.tokenizer.eos_token
        answers = f"A cat, on a mat.{end}Gone.{end}"
        assert decode(batch.target_R[own_R & batch.answer_R]) == answers
        text = decode(batch.target_R[own_R & batch.text_R])
        assert "What is this, and where?" in text and "And now?" in text
        assert mlm.config.image_token_id not in batch.target_R[own_R]
    prompts = [Prompt(e.images, "What is this, and where?") for e in (_example(1), _example(2))]
    expected = mlm.encode(prompts, padding_side="right")
    assert torch.equal(batch.encoded.text_end_B, expected.text_end_B)
    for ours, theirs in zip(batch.encoded.images, expected.images, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.positions_V, b.positions_V) and a.first_row == b.first_row


def test_a_prompt_that_sees_itself_does_not_see_its_answer(checkpoint) -> None:
    """PaliGemma: the answer is no part of the prompt; what is asked is, also for the image."""
    mlm = load_mlm(str(checkpoint("paligemma")))
    collate = Collator(mlm.processor, mlm.config, mlm.family)
    image = tiny.photo(60, 100)

    def run(asked: str, answer: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = collate([Example("x", (image,), (Turn((None, asked), answer),))])
        with torch.no_grad():
            out = mlm.model(**batch.encoded.inputs, output_hidden_states=True)
        first = int(batch.rows_R[batch.answer_R][0])
        at = batch.encoded.images[0][0].positions_V
        return out.logits[0, : first + 1], out.hidden_states[2][0][at], batch.target_R

    (logits, image_state, _), (other, same_state, _) = run("Is it?", "Yes."), run("Is it?", "Nope")
    assert torch.equal(logits, other) and torch.equal(image_state, same_state)
    assert not torch.allclose(image_state, run("Was it?", "Yes.")[1], atol=1e-4)
    alone = Example("bare", (), (Turn(("Hi",), "Ho"),))
    with pytest.raises(ValueError, match=r"bare: expected an example with an image for paligemma"):
        collate([alone])


def _values(mlm: Mlm) -> torch.Tensor:
    [sample] = extract(mlm, [Prompt((tiny.photo(60, 100),), "a cat")], sites=("value",))
    return sample.images[0]["value"]


def _losses() -> Losses:
    losses = steps.only("mask", "text_value", "correspondence", "distil", "gram", "kl")
    return replace(losses, mask=replace(losses.mask, outputs=8))


@pytest.mark.parametrize("name", tiny.EVERY)
def test_five_steps_and_one_diagnosed_unit(name, checkpoint, tmp_path) -> None:
    model = checkpoint(name)
    made = recipe(model, "scenes", tmp_path / "trained", steps=5, batch=2, losses=_losses())
    out = train(replace(made, save_every=0))
    assert json.loads((out / "training.json").read_text())["steps"] == 5
    base, tuned = load_mlm(str(model)), load_mlm(str(model), adapter=str(out))
    before, after = _values(base), _values(tuned)
    assert not torch.allclose(before, after)
    with tuned.model.disable_adapter():
        assert torch.equal(_values(tuned), before)
    run = tmp_path / "run"
    only = ("--only", "flow", "--task", "foreground_segmentation", "--limit", 1, "--no-control")
    ended = call("diagnose", "--model", model, *only, "--out", run)
    assert ended.code == 0, ended.err
    told = json.loads((run / "run.json").read_text())
    assert told["model"]["family"] == base.family.model_type
    assert {row["site"] for row in told["results"]} >= {"vision", "projector", "value"}
    assert told["model"]["warnings"] == list(base.warnings)
