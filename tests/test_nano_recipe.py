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
    answer_labels,
    cell_words,
    collate,
    draw_lesson,
    naming_loss,
)
from nano_models import BUILDERS, Nano, build_nano  # noqa: E402

from kvfix.data.scenes import Scene, Thing, render  # noqa: E402
from kvfix.families import FAMILIES  # noqa: E402


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
    """A square of side 0.4 in the middle of 8 x 8 cells, on ground."""
    thing = Thing("square", "red", "plain", 0.5, 0.5, 0.25, 0.0)
    scene = Scene((thing,), "even", (100.0, 100.0, 100.0), "flat", 0)
    instance = render(scene).instance_HW
    target = cell_words(nano, scene, instance, (8, 8))
    np.testing.assert_allclose(target.sum(1), 1, atol=1e-5)
    tok = nano.processor.tokenizer
    red = target[:, tok.convert_tokens_to_ids("red")].view(8, 8)
    forms = sum(len(tok.encode(f)) == 1 for w in ("red", "plain", "square") for f in (w, " " + w))
    share = torch.from_numpy(instance.astype(np.float32)).view(8, 20, 8, 20).mean((1, 3))
    torch.testing.assert_close(red, share / forms)
    assert red[0].sum() == 0 and red[3, 3] > 0


def test_naming_reaches_tower_projector_and_words_but_no_decoder_layer(nano: Nano) -> None:
    nano.model.zero_grad()
    family = FAMILIES[nano.model.config.model_type]
    naming_loss(nano, family, range(2)).backward()
    moved = {n for n, p in nano.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith(family.vision) for n in moved)
    assert any(n.startswith(family.projector) for n in moved)
    assert any("embed_tokens" in n for n in moved)
    assert not any(".layers." in n and "language_model" in n for n in moved)


def test_the_vocabulary_has_whole_words_and_single_letters(nano: Nano) -> None:
    tok = nano.processor.tokenizer
    assert tok.tokenize("(A)") == ["(", "A", ")"]
    assert len(tok.encode(" second")) == len(tok.encode(" checked")) == 1


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_alike(tmp_path: Path) -> None:
    """Three steps, a state, three more: the same weights as six steps in one go."""

    def train(state: str, *settings: str) -> None:
        command = [sys.executable, str(ROOT / "recipes" / "train_nano.py"), *settings]
        common = ["steps=4", "naming_steps=2", "naming_batch=2", "batch=2", "exam=1"]
        place = [f"out={tmp_path / state}", f"states={tmp_path / (state + '-states')}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *common, *place], check=True, env=env, capture_output=True)

    train("whole", "save_every=100")
    train("halves", "save_every=3", "stop_at=3")
    train("halves", "save_every=3")
    whole, halves = (load_file(tmp_path / s / "model.safetensors") for s in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert "Multiple choice" in (tmp_path / "whole" / "README.md").read_text()
