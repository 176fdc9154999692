"""A training step of every loss on a GPU, pretended where there is none, is that of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from pretend_gpu import put, somewhere
from talks import write_talks

from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import Example, conversation_examples, scene_examples
from kvfix.data.training.mix import SceneMix, Shares
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.batch import Collator
from kvfix.repair.key_choice import ChosenKeys
from kvfix.repair.module import Repair

READ = ("mask", "text_value", "correspondence", "gram", "distil", "kl")


def test_a_training_step_of_every_loss_runs_on_a_gpu(
    checkpoint: Callable[[str], Path], tmp_path: Path, device: str
) -> None:
    talks = conversation_examples(read_conversations(write_talks(tmp_path, 4)))
    scenes = scene_examples("train", 12, SceneMix(Shares(question=9)))
    examples = [*talks, scenes[10], scenes[11]]
    folder = checkpoint("llava_onevision")
    alone = _step(folder, examples, "cpu")
    there = somewhere(device, lambda: _step(folder, examples, device))
    assert there["amounts"] == alone["amounts"] and all(alone["amounts"])
    assert there["means"] == pytest.approx(alone["means"], rel=1e-3, abs=1e-5)
    if device == "cuda":  # autograd has no queue for a pretended device
        assert there["gradients"] == pytest.approx(alone["gradients"], rel=1e-2, abs=1e-5)


def _step(folder: Path, examples: list[Example], device: str) -> dict[str, Any]:
    """Amounts and means of every loss, and how large each gradient is."""
    mlm = steps.tuned(folder, device="cuda" if device == "cuda" else "cpu")
    batch = Collator(mlm.processor, mlm.config, mlm.family, choices=True)(examples)
    layout = batch.encoded.images[1][0].layout
    shape = (mlm.n_layers, mlm.n_kv_heads, layout.n_tokens)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    keys = ChosenKeys(chosen, layout.index_HW.numel(), 0.1, 0.0, "some keys")
    losses = steps.only(*READ, "dependence", "mass")
    losses = replace(
        losses,
        mask=replace(losses.mask, outputs=8),
        dependence=replace(losses.dependence, floor=1.0),
        mass=replace(losses.mass, ceiling=0.0),
        evidence=replace(losses.evidence, weight=1.0, layers=(2,), source=0),
    )
    repair = Repair(mlm, losses, lm=1.0, seed=0, keys=keys)
    recompute_layers(mlm.model.train())
    if device == "pretend":
        put(repair)
    repair.to(mlm.device)
    amounts = repair.amounts(batch)
    batch = batch.moved(mlm.device, mlm.dtype)
    amount_T = torch.tensor(amounts).to(mlm.device)
    loss, table_T2 = repair(batch, 0, amount_T, 1.0)
    largest: list[float] = []
    if device != "pretend":
        loss.backward()
        largest = [p.grad.abs().amax().item() for p in repair.parameters() if p.grad is not None]
    return {
        "amounts": amounts,
        "means": [loss.item(), *table_T2[:, 0].tolist()],
        "gradients": largest,
    }
