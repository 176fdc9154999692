"""The look at the first step's gradients: what learns nothing is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import steps
import torch
from talks import write_talks

from kvfix.data.training.dataset import read_conversations
from kvfix.data.training.examples import conversation_examples
from kvfix.repair.batch import Collator
from kvfix.repair.gradients import GradientProbe
from kvfix.repair.module import Repair


@pytest.mark.parametrize("reached", [True, False])
def test_a_module_that_no_loss_reaches_is_named(reached, checkpoint, tmp_path) -> None:
    """A mask head at layer 1 trains nothing of layer 2."""
    mlm = steps.tuned(checkpoint("llava"), spread=0.0)
    losses = steps.only("mask")
    losses = replace(losses, mask=replace(losses.mask, outputs=8))
    repair = Repair(mlm, losses, lm=float(reached), seed=0)
    collator = Collator(mlm.processor, mlm.config, mlm.family, choices=True)
    examples = conversation_examples(read_conversations(write_talks(tmp_path, 4)))
    batch = collator([examples[1], examples[2]])
    probe = GradientProbe(repair)
    loss, _ = repair(batch, 0, torch.tensor(repair.amounts(batch)), 1.0)
    loss.backward()
    probe.close()
    if reached:
        probe.check()
        assert not probe.without()
        return
    assert any("layers.2.mlp.down_proj.lora_B" in name for name in probe.without())
    assert not any("layers.0." in name or "heads" in name for name in probe.without())
    other = GradientProbe(repair)
    other.largest = dict.fromkeys((name for name, _ in repair.named_parameters()), 1.0)
    other.pool(lambda seen: seen.clamp(min=0.0))
    other.check()  # another rank reached all
    other.close()
    with pytest.raises(
        ValueError, match=r"gradient in every adapted module .* none in \d+ of 21: "
    ):
        probe.check()


def test_gradients_that_are_no_numbers_are_left_to_the_guard(checkpoint) -> None:
    """They are no missing ones, and the guard names the step and the rates."""
    mlm = steps.tuned(checkpoint("llava"))
    probe = GradientProbe(mlm.model)
    for number, parameter in enumerate(mlm.model.parameters()):
        if parameter.requires_grad:
            (parameter.sum() * float("nan" if number % 2 else "inf")).backward()
    probe.check()
    assert not probe.without()
