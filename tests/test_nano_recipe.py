"""The nano recipe: labels, targets, and a run that is cut short and continued."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "recipes"))

from nano_lessons import (  # noqa: E402
    IGNORE,
    Gallery,
    answer_labels,
    cell_shares,
    collate,
    draw_lesson,
    naming_loss,
    place_words,
    thing_words,
)
from nano_models import BUILDERS, Nano, build_nano  # noqa: E402

from kvfix.capture import extract  # noqa: E402
from kvfix.data.scenes import Scene, Thing, generator, render, sample_scene  # noqa: E402
from kvfix.families import FAMILIES  # noqa: E402
from kvfix.models import Mlm, Prompt  # noqa: E402


def draw_scene(index: int) -> Scene:
    return sample_scene(generator("test", index, "recipe"))


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def nano(request: pytest.FixtureRequest) -> Nano:
    return build_nano(request.param, seed=0)


def test_labels_keep_answers_and_their_end_and_nothing_else() -> None:
    ids = torch.tensor([[9, 1, 2, 5, 6, 3, 9, 1, 2, 7, 3], [1, 2, 8, 3, 0, 0, 0, 0, 0, 0, 0]])
    labels = answer_labels(ids, [1, 2], end=3)
    kept = [row[row != IGNORE].tolist() for row in labels]
    assert kept == [[5, 6, 3, 7, 3], [8, 3]]
    assert (labels[labels != IGNORE] == ids[labels != IGNORE]).all()


def test_a_batch_learns_the_answers_of_its_conversations(nano: Nano) -> None:
    lessons = [draw_lesson("train", 3, pair=False, ease=0.0, turns=4)]
    lessons += [draw_lesson("train", 4, pair=True, ease=0.0, turns=4)]
    batch = collate(nano, lessons)
    tok = nano.processor.tokenizer
    for lesson, labels in zip(lessons, batch["labels"], strict=True):
        learned = tok.decode(labels[labels != IGNORE])
        assert learned == "".join(t.answer + nano.dialect.end for t in lesson.turns)
    image_id = nano.model.config.image_token_id
    assert (batch["labels"][batch["input_ids"] == image_id] == IGNORE).all()


def test_a_cells_words_are_its_objects_by_area(nano: Nano) -> None:
    """A red square in the middle, on ground: colour, texture, shape, row and column share alike."""
    thing = Thing("square", "red", "plain", 0.5, 0.5, 0.25, 0.0)
    scene = Scene((thing,), "even", (100.0, 100.0, 100.0), "flat", 0)
    instance = render(scene).instance_HW
    shares, words = cell_shares(instance), thing_words(nano, scene)
    target = shares @ words
    target += (1 - target.sum(1, keepdim=True)) * place_words(nano)
    np.testing.assert_allclose(target.sum(1), 1, atol=1e-5)
    tok = nano.processor.tokenizer

    def word(name: str) -> torch.Tensor:
        forms = [f for f in (tok.encode(name), tok.encode(" " + name)) if len(f) == 1]
        return sum(target[:, form[0]] for form in forms).view(8, 8)  # type: ignore[union-attr]

    share = torch.from_numpy(instance.astype(np.float32)).view(8, 20, 8, 20).mean((1, 3))
    assert 0 < share.mean() < 0.3
    torch.testing.assert_close(word("red"), share / 5)
    torch.testing.assert_close(word("image"), (1 - share) / 3)
    assert word("top")[0].min() > 0 and word("top")[4:].max() == 0
    assert word("right")[:, 7].min() > 0 and word("right")[:, :4].max() == 0


def test_naming_reaches_tower_projector_and_words_but_no_decoder_layer(nano: Nano) -> None:
    nano.model.zero_grad()
    family = FAMILIES[nano.model.config.model_type]
    naming_loss(nano, *Gallery(nano, 4).batch(0, 2)).backward()
    moved = {n for n, p in nano.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith(family.vision) for n in moved)
    assert any(n.startswith(family.projector) for n in moved)
    assert any("embed_tokens" in n for n in moved)
    assert not any(".layers." in n and "language_model" in n for n in moved)


def test_what_naming_looks_at_is_what_the_language_model_gets(nano: Nano) -> None:
    """The raster of image tokens is, cell by cell, what capture finds at the projector."""
    image = render(draw_scene(5)).image
    pixels = dict(nano.processor.image_processor([image], return_tensors="pt"))
    nano.model.eval()
    tokens = nano.look(
        nano.model,
        {k: v.float() if v.is_floating_point() else v for k, v in nano.crop(pixels).items()},
    )[0]
    mlm = Mlm(
        "nano",
        nano.model,
        nano.processor,
        FAMILIES[nano.model.config.model_type],
        None,
        None,
        torch.float32,
    )  # type: ignore[arg-type]
    [sample] = extract(mlm, [Prompt((image,), "x")], sites=("projector",))
    torch.testing.assert_close(
        sample.images[0]["projector"].flatten(0, 2), tokens, atol=2e-3, rtol=2e-3
    )


def test_a_pass_of_the_gallery_shows_every_scene_once(nano: Nano) -> None:
    gallery = Gallery(nano, 6)
    one, two = (torch.cat([gallery.batch(s + k, 2)[1] for s in range(3)]) for k in (0, 3))
    torch.testing.assert_close(one.sum(-1), torch.ones(6, 64), atol=1e-3, rtol=0)
    assert len({tuple(x) for x in one.flatten(1).tolist()}) == 6
    assert sorted(one.flatten(1).tolist()) == sorted(two.flatten(1).tolist())
    assert not torch.equal(one, two)


def test_the_vocabulary_has_whole_words_and_single_letters(nano: Nano) -> None:
    tok = nano.processor.tokenizer
    assert tok.tokenize("(A)") == ["(", "A", ")"]
    assert len(tok.encode(" second")) == len(tok.encode(" checked")) == 1


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_alike(tmp_path: Path) -> None:
    """Three steps, a state, three more: the same weights as six steps in one go."""

    def train(state: str, *settings: str) -> None:
        command = [sys.executable, str(ROOT / "recipes" / "train_nano.py"), *settings]
        common = ["steps=4", "naming_steps=2", "naming_batch=2", "gallery=4", "batch=2"]
        place = ["exam=1", f"out={tmp_path / state}", f"states={tmp_path / (state + '-states')}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *common, *place], check=True, env=env, capture_output=True)

    train("whole", "save_every=100")
    train("halves", "save_every=3", "stop_at=3")
    train("halves", "save_every=3")
    whole, halves = (load_file(tmp_path / s / "model.safetensors") for s in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert "Multiple choice" in (tmp_path / "whole" / "README.md").read_text()
