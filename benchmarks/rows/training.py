"""A training step of the recipes beside plain LoRA in the same trainer, and that beside TRL."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

from benchmarks import train
from benchmarks.peers import NotInstalled, python_of
from benchmarks.turns import Asked, Goal, Line, compared_line
from kvfix.shipped import nano_dir

SURFACING, ARTIFACTS = "surfacing recipe", "artifacts recipe"


def compared(asked: Asked) -> Iterator[Line]:
    """Each side trains in a process of its own; in each round they take turns."""
    rounds = min(asked.rounds, 2)
    batch = 1 if asked.tiny else 12
    settings = argparse.Namespace(
        model=str(nano_dir()), dtype="float32", steps=2 * train.PERIOD, batch=batch, trl=False
    )
    recipes = (SURFACING,) if asked.tiny else (SURFACING, ARTIFACTS)
    seen = _turns((train.PLAIN, *recipes), settings, rounds)
    for name in recipes:
        goal = Goal(1.15, at_most=True)
        yield _line(f"a training step of {batch}, {name}", seen[name], seen, train.PLAIN, goal)
    if asked.tiny:
        return
    try:
        python = str(python_of("trl"))
    except NotInstalled as error:
        yield Line("a training step, questions alone", "", str(error))
        return
    settings.trl = True
    seen = _turns((train.PLAIN, train.TRL), settings, rounds, python)
    name = f"a training step of {batch}, plain LoRA, questions alone"
    yield _line(name, seen[train.PLAIN], seen, train.TRL, Goal(1))


def _turns(
    sides: tuple[str, ...], settings: argparse.Namespace, rounds: int, python: str | None = None
) -> dict[str, list[dict[str, float]]]:
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, runs in seen.items():
            own = (python,) if python and side == train.TRL else ()
            runs.append(train.in_a_process(side, settings, *own))
    return seen


def _line(
    name: str,
    ours: list[dict[str, float]],
    seen: dict[str, list[dict[str, float]]],
    beside: str,
    goal: Goal,
) -> Line:
    seconds, mib = (
        [[run[part] for run in runs] for runs in (ours, seen[beside])]
        for part in ("seconds", "mib")
    )
    memory = f"{statistics.median(mib[0]):.0f} MiB, {statistics.median(mib[1]):.0f}"
    return compared_line(name, seconds[0], beside, seconds[1], goal, memory=memory)
