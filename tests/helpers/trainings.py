"""Short trainings of a tiny model, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvfix.recipes import train_surfacing
from kvfix.repair.lora import LoraOptions, Rates
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.show import Monitor

COMMAND = ["python", "recipes/train_surfacing.py"]
TRAINED = ("adapter_model.safetensors", "adapter_config.json")


def recipe(model: Path, data: Path, out: Path, **changed: Any) -> Recipe:
    """A few steps of a tiny model, with dropout, so that a draw too many shows."""
    settings: dict[str, Any] = {
        "model": str(model),
        "data": str(data),
        "out": str(out),
        "steps": 6,
        "batch": 4,
        "warmup": 1,
        "log_every": 1,
        "lora": LoraOptions(rank=2, dropout=0.1),
        "rates": Rates(lm=2e-3, heads=5e-3),
        "save_every": 2,
        "keep": 9,
    }
    return Recipe(**(settings | changed))


def train(made: Recipe) -> Path:
    """The run folder."""
    return train_surfacing.train(made, command=COMMAND)


def trained(out: Path) -> dict[str, bytes]:
    """What is left of a training, byte by byte."""
    return {name: (out / name).read_bytes() for name in TRAINED}


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def record(out: Path) -> dict[str, Any]:
    """`training.json`."""
    return json.loads((out / "training.json").read_text())


def names(out: Path) -> list[str]:
    """Checkpoints and what is half-written, in the order of their names."""
    return sorted(p.name for p in out.iterdir() if "checkpoint" in p.name or p.name[0] == ".")


def at_step(monkeypatch: Any, step: int, do: Callable[[], object]) -> None:
    """Do something in the midst of a training, where a step is logged."""
    line = Monitor.line

    def doing(self: Monitor, logs: dict[str, Any]) -> None:
        line(self, logs)
        if logs["step"] == step and "loss" in logs:
            do()

    monkeypatch.setattr(Monitor, "line", doing)
