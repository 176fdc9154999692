"""A made-up run of six tasks and eight layers, in the format of run.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://evil.test/x onerror=a()> | `x` [a](http://b)"
)
LAYERS = 8
TASKS = {
    "foreground_segmentation": ("scenes", "IoU", 0.62),
    "cosegmentation": ("scenes", "Jaccard", 0.51),
    "semantic_segmentation": ("scenes", "IoU", 0.33),
    "referring_segmentation": ("scenes", "IoU", 0.29),
    "semantic_correspondence": ("spair71k", "PCK@0.1", 0.37),
    "temporal_correspondence": ("davis2017", "J&F", 0.55),
}
BY_TEXT = ("semantic_segmentation", "referring_segmentation")


def fake_run(*, heads: bool = False) -> dict[str, Any]:
    """A run of six tasks and eight layers, curves that rise and fall, both controls."""
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for task, (dataset, metric, level) in TASKS.items():
        same = {"task": task, "dataset": dataset, "metric": metric, "split": "test", "n": 60}
        same |= {"cluster": "image", "clusters": 24, "chance": 0.11, "ceiling": 0.9}

        def add(
            site: str,
            layer: int | None,
            value: float,
            *,
            same: dict[str, Any] = same,
            control: str | None = None,
            head: int | None = None,
            **other: Any,
        ) -> None:
            value = float(np.clip(value + rng.normal(0, 0.008), 0, 1))
            spread = float(0.03 + 0.02 * rng.random())
            row = {"site": site, "layer": layer, "head": head, "control": control, "value": value}
            results.append({**same, **row, "ci": [value - spread, value + spread], **other})

        if task not in BY_TEXT:
            add("vision", None, level)
            add("projector", None, level - 0.1)
            add("vision", None, 0.24, control="random_weights")
        for layer in range(LAYERS):
            shape = 0.13 * np.sin(np.pi * (layer + 0.6) / LAYERS)
            add("value", layer, level - 0.12 + shape)
            add("key", layer, level - 0.17 + 0.8 * shape)
            add("hidden", layer, level - 0.14 + 0.7 * shape)
            add("value", layer, 0.2 + 0.004 * layer, control="random_weights")
            for head in range(2 if heads else 0):
                add("value", layer, level - 0.2 + shape + 0.05 * head, head=head)
        add("position", None, 0.17)
    return {
        "kvfix": "0.1.0",
        "kind": "diagnose",
        "command": "kvfix diagnose --model nano/llava_onevision --data davis2017=/data/DAVIS",
        "started": "2026-03-01T09:30:00+00:00",
        "seconds": 71.4,
        "seed": 0,
        "complete": True,
        "reference_encoder": None,
        "model": {
            "id": "nano/llava_onevision",
            "family": "llava_onevision",
            "revision": None,
            "sha256": "a3" * 32,
            "adapter": None,
            "adapter_sha256": None,
            "dtype": "float32",
        },
        "versions": {
            "python": "3.12.1",
            "torch": "2.9.0",
            "transformers": "5.23.0",
            "peft": "0.21",
        },
        "data": [
            {"dataset": d, "task": t, "split": "test", "n": 60, "sha256": "0f" * 32}
            for t, (d, _, _) in TASKS.items()
        ],
        "results": results,
        "findings": findings(),
        "left_out": [
            {"task": "cosegmentation", "id": "scenes/test/17", "why": "17.png: truncated image"}
        ],
        "overlays": [],
    }


def findings() -> list[dict[str, Any]]:
    """A peak of each task in a sentence with its numbers, and one finding without them."""
    found: list[dict[str, Any]] = []
    for task, (dataset, metric, level) in TASKS.items():
        low, high = level - 0.041, level + 0.043
        found.append(
            {
                "id": "flow.peak",
                "text": f"{task.replace('_', ' ').capitalize()}: image values are best at layer 4 "
                f"of 8 (chosen on the other half of the units): {metric} {level:.3f} "
                f"[{low:.3f}, {high:.3f}] (n = 30); chance 0.110, ceiling of the grid 0.900.",
                "task": task,
                "dataset": dataset,
                "layer": 4,
                "value": level,
                "ci": [low, high],
                "n": 30,
                "percent": False,  # the sentence holds them
            }
        )
    last = {"id": "flow.projector", "text": "The projector loses a sixth.", "task": task}
    return [*found, {**last, "value": -0.101, "ci": [-0.142, -0.063], "n": 60}]


def save_run(folder: Path, run: dict[str, Any]) -> Path:
    """A run folder without samples."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    return folder
