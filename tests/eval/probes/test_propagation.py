"""What label propagation holds of a clip, and that it does not move a label."""

from __future__ import annotations

import pytest
import torch

from kvfix.eval.probes import score
from kvfix.eval.probes.propagation import Propagator

SITES, SIDE, CHANNELS, FRAMES = 6, 12, 32, 12


def _frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(FRAMES, SITES, SIDE, SIDE, CHANNELS, generator=generator)
    return noise.bfloat16()


def _propagated(frames: torch.Tensor) -> tuple[Propagator, torch.Tensor]:
    labels = torch.nn.functional.one_hot(torch.arange(SIDE * SIDE) % 3).T.reshape(3, SIDE, SIDE)
    clip = Propagator(frames[0].clone(), labels)
    return clip, torch.stack([clip.step(f.clone()) for f in frames[1:]])


def test_a_clip_in_low_precision_is_held_in_that_precision_and_scored_as_in_float32() -> None:
    frames = _frames()
    clip, soft = _propagated(frames)
    held = [clip._first[0], *(f for f, _ in clip._last)]
    assert len(held) == 8
    assert sum(f.untyped_storage().nbytes() for f in held) == 8 * frames[0].nbytes
    assert torch.equal(soft, _propagated(frames.float())[1])


def test_sites_are_compared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = _frames()
    whole = _propagated(frames)[1]
    most = 8 * frames[0, 0].numel()  # one site of a whole context
    stack, largest = torch.stack, []

    def seen(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        out = stack(tensors, dim=dim)
        largest.append(out.numel())
        return out

    monkeypatch.setattr(score, "MEMORY_ELEMENTS", most)
    monkeypatch.setattr(torch, "stack", seen)
    clip, _ = _propagated(frames)
    monkeypatch.undo()
    assert max(largest[:-1]) <= most  # the last is the test's own, of all labels
    monkeypatch.setattr(score, "MEMORY_ELEMENTS", most)
    torch.testing.assert_close(_propagated(frames)[1], whole, rtol=0, atol=1e-6)
    assert len(clip._last) == 7
