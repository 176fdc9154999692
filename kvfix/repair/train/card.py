"""What a run folder says of itself: `training.json`, and the adapter's card."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kvfix
from kvfix.repair.train.resume import RECORD, Work, hashes
from kvfix.repair.train.saves import TRAINED_FILES
from kvfix.runs.atomic import write_text

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate")
CARD = "README.md"
HEADING = "## Before and after"


def begin_record(work: Work) -> dict[str, Any]:
    """What is known where the steps begin; the starts before this one stay in it."""
    mlm, keys = work.repair.mlm, work.repair.keys
    examples, report = work.examples, work.report
    start = {
        "command": shlex.join(work.command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "from_step": work.going.step,
        "ended": None,
        "seconds": None,
        "ranks": work.launch.world,
        "versions": {name: version(name) for name in PACKAGES} | {"kvfix": kvfix.__version__},
        "python": platform.python_version(),
        "git": _git(),
        "device": str(mlm.device),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "pid": os.getpid(),
    }
    starts = [*work.going.record.get("starts", ()), start]
    return {
        "kind": "training",
        "complete": False,
        "command": starts[0]["command"],
        "started": starts[0]["started"],
        "seconds": sum(s["seconds"] or 0.0 for s in starts),
        "steps": 0,
        "model": {"id": mlm.id, "family": mlm.config.model_type},
        "data": {
            "name": examples.name,
            "n": len(examples),
            "left_out": list(examples.left_out),
            "forms": dict(examples.forms),
            "notes": list(examples.notes),
        },
        "trainable": report.trainable,
        "share": report.share,
        "modules": {part: len(names) for part, names in report.modules.items()},
        "keys": None if keys is None else keys._asdict() | {"keys_SHV": int(keys.keys_SHV.sum())},
        **{name: start[name] for name in ("versions", "python", "git", "device", "threads", "pid")},
        "starts": starts,
    }


def end_record(record: dict[str, Any], *, how: str, seconds: float) -> dict[str, Any]:
    """The last start has ended."""
    *earlier, last = record["starts"]
    starts = [*earlier, last | {"ended": how, "seconds": round(seconds, 1)}]
    total = sum(s["seconds"] or 0.0 for s in starts)
    return record | {"starts": starts, "seconds": round(total, 1)}


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")


def moved_versions(record: Mapping[str, Any]) -> list[str]:
    """Packages that are not those of the start before, in words."""
    if len(record["starts"]) < 2:
        return []
    then, now = (start["versions"] for start in record["starts"][-2:])
    return [
        f"{name}: then {then[name]}, now {now[name]}"
        for name in now
        if name in then and then[name] != now[name]
    ]


def told(work: Work, record: Mapping[str, Any]) -> list[str]:
    """What whoever goes on with a run must know, in words."""
    going, recipe = work.going, work.recipe
    if going.last is None:
        return []
    lines = [f"going on after step {going.step}, from {going.last}"]
    if moved := moved_versions(record):
        lines.append(f"other versions than before: {'; '.join(moved)}")
    steps = going.fingerprint.get("steps", recipe.steps)
    if recipe.steps > steps:
        lines.append(
            f"steps: then {steps}, now {recipe.steps}: from here on learning rates are those of "
            f"{recipe.steps} steps, until here they were those of {steps}"
            + (", and scenes are drawn anew, some a second time" if recipe.data == "scenes" else "")
            + "; a run of that length from its start would end elsewhere"
        )
    return lines


def finish(recipe: Any, out: Path, record: dict[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """The last files of a run that has ended: the card, and the record that says so."""
    model = record["model"] | {"sha256": fingerprint["model.sha256"]}
    record = record | {"model": model, "fingerprint": fingerprint, "steps": recipe.steps}
    write_text(out / CARD, card(recipe, record))
    files = hashes(out, TRAINED_FILES)
    write_record(out, record | {"complete": True, "files": files})


def card(recipe: Any, record: dict[str, Any]) -> str:
    """The adapter's README, in the form that hubs read; replaces PEFT's own."""
    terms = {"lm": recipe.lm} | {n: t.weight for n, t in recipe.losses.active().items()}
    losses = ", ".join(f"{name} {weight:g}" for name, weight in terms.items())
    parts = ", ".join(f"{part}: {n:,}" for part, n in record["trainable"].items())
    return f"""---
base_model: {record["model"]["id"]}
library_name: peft
tags: [lora, kvfix]
---

# {Path(recipe.out or "repair").name}

A LoRA adapter for `{record["model"]["id"]}` ({record["model"]["family"]}, weights sha256
`{record["model"]["sha256"][:12]}`), made by

    {record["command"]}

in {record["seconds"] / 60:.1f} minutes: {recipe.steps} steps of {recipe.batch} x
{recipe.accumulate} examples of {record["data"]["name"]}. Losses and weights: {losses}. Trained
parameters: {parts} ({record["share"]:.2%} of all).

Before against after is measured by `kvfix eval` on both and `kvfix compare`, or by
`python recipes/repair.py`, which writes its table here.
"""


def with_table(card: str, report: str) -> str:
    """The card with the comparison's sections on answers and probes, in place of an older one."""
    sections = report.split("\n## ")
    kept = [s for s in sections if s.startswith(("What changed", "Answers", "Probes"))]
    text = "\n\n".join(f"### {section.strip()}" for section in kept)
    return f"{card.split(HEADING)[0].rstrip()}\n\n{HEADING}\n\n{text}\n"


def _git() -> str | None:
    """Commit of the checkout that runs, marked where files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
