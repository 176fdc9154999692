"""Run one stage of a training: resumable at any moment, its held-out measure printed now and then.

A state holds what its stage trains and nothing else, so stages that train different parts can run
in any order; the same command skips finished stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from muon import Muon
from rich.console import Console
from torch import nn

from kvfix.mlm.native import has_bfloat16
from kvfix.runs.atomic import atomic_file

TABLES = ("heads.", "embed")  # of words, places and pixels, and what is thrown away
MUON = 2.0  # its learning rate against AdamW's
console = Console(stderr=True, width=160, soft_wrap=True)


class Spent(NamedTuple):
    """What a stage has cost so far, over all starts, and its running mean loss."""

    loss: float = 0.0
    minutes: float = 0.0  # of the clock
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Part of the state file's name.
        steps: Length.
        lr: Peak: a linear warm-up, then a straight line down to zero.
        loss: Step number -> loss to descend.
        measure: Prints held-out figures; called every `measure_every` steps and at the end.
        trained: The parameters that it moves and saves, by name.
    """

    name: str
    steps: int
    lr: float
    loss: Callable[[int], torch.Tensor]
    measure: Callable[[], Any]
    trained: dict[str, nn.Parameter]


@dataclass(frozen=True)
class Pace:
    """What all stages share."""

    warmup: int
    weight_decay: float
    save_every: int
    measure_every: int
    stop_at: int  # stop every stage's run after this many steps of it; 0: at its end


def learning_rate(step: int, stage: Stage, warmup: int) -> float:
    """Linear warm-up, then a straight line down to zero."""
    return stage.lr * min((step + 1) / warmup, 1.0) * (stage.steps - step) / stage.steps


def run_stage(stage: Stage, pace: Pace, state_file: Path) -> bool:
    """Run the remaining steps; returns whether the stage is finished."""
    weights = list(stage.trained.values())
    optimizers = _optimizers(stage, pace.weight_decay)
    first, spent = 0, Spent()
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["weights"].keys() != stage.trained.keys():
            raise ValueError(f"{state_file}: expected the weights of this model, found others")
        with torch.no_grad():
            for name, kept in state["weights"].items():
                stage.trained[name].copy_(kept)
        first, spent = state["step"], Spent(*state["spent"])
        if first >= stage.steps:
            console.print(f"{stage.name}: done, {first} steps, {spent}")
            return True
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        console.print(f"{stage.name}: continuing at step {first}")
    clock, cpu = time.time() - 60 * spent.minutes, time.process_time() - spent.cpu_seconds
    recent, began = spent.loss, time.time()
    last = min(pace.stop_at or stage.steps, stage.steps)
    for step in range(first, last):
        rate = learning_rate(step, stage, pace.warmup)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            loss = stage.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.step()
            optimizer.zero_grad()
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        done = step + 1
        spent = Spent(recent, (time.time() - clock) / 60, time.process_time() - cpu)
        if done % 50 == 0:
            speed = (done - first) / (time.time() - began)
            console.print(
                f"{stage.name} {done}/{stage.steps}  loss {recent:.4f}  {speed:.2f} steps/s"
                f"  {spent.minutes:.1f} min  {spent.cpu_seconds:.0f} CPU-s"
            )
        if done % pace.save_every == 0 or done == last:
            _save(state_file, stage, optimizers, done, spent)
        if done % pace.measure_every == 0 or done == stage.steps:
            console.print(f"{stage.name} {done}: {stage.measure()}")
    return last == stage.steps


def _optimizers(stage: Stage, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside tower, projector and language model, AdamW for the rest.

    All weights decay but word embeddings: rare words would all become the same one.
    """
    parts: dict[str, list[nn.Parameter]] = {"matrices": [], "words": [], "rest": []}
    for name, p in stage.trained.items():
        matrix = p.ndim == 2 and not any(part in name for part in TABLES)
        part = "words" if "embed_tokens" in name else "matrices" if matrix else "rest"
        parts[part].append(p)
    rest = [{"params": parts["rest"], "weight_decay": weight_decay, "share": 1.0}]
    rest += [{"params": parts["words"], "weight_decay": 0.0, "share": 1.0}]
    adamw = torch.optim.AdamW([g for g in rest if g["params"]], lr=stage.lr, betas=(0.9, 0.98))
    if not parts["matrices"]:
        return [adamw]
    matrices = [{"params": parts["matrices"], "share": MUON}]
    return [adamw, Muon(matrices, lr=stage.lr, weight_decay=weight_decay, momentum=0.95)]


def _save(
    path: Path, stage: Stage, optimizers: list[torch.optim.Optimizer], step: int, spent: Spent
) -> None:
    """An interrupted write never replaces a good state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach() for name, p in stage.trained.items()}
    state: dict[str, Any] = {"weights": weights, "step": step, "spent": tuple(spent)}
    if step < stage.steps:
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    with atomic_file(path) as stream:
        torch.save(state, stream)


def spent_on(state_file: Path) -> Spent:
    """What a finished or interrupted stage has cost."""
    return Spent(*torch.load(state_file, weights_only=True)["spent"])
