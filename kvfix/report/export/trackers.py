"""A finished run's scores and figure, logged where people keep theirs: TensorBoard or wandb.

A score by layer is a curve whose step is the layer; what has no layer is logged at step 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.findings import number
from kvfix.report.stages import panels
from kvfix.report.verdict import model_name, verdict

TRACKERS = ("tensorboard", "wandb")
PROJECT = "kvfix"
FIGURE = Path("figures") / "layer_curves.png"


class Logged(NamedTuple):
    """A number of a run."""

    name: str  # such as `cosegmentation/scenes/Jaccard/value`
    layer: int
    value: float


def need(tracker: str) -> None:
    """Refuse a tracker whose package is not installed, before a run that takes hours."""
    if tracker in TRACKERS and find_spec(tracker) is None:
        raise ValueError(
            f"expected the package {tracker} to report to, found it is not installed: "
            f"pip install {tracker}"
        )


def log_run(record: dict[str, Any], folder: Path, tracker: str) -> None:
    """Log a run that is finished to one of `TRACKERS`; TensorBoard's files go to its folder."""
    {"tensorboard": _tensorboard, "wandb": _wandb}[tracker](record, folder)


def scores(record: dict[str, Any]) -> Iterable[Logged]:
    """Every score of whole layers and stages, and the accuracy of answers."""
    for row in record.get("results") or []:
        value = number(row.get("value"))
        if value is None or row.get("head") is not None:
            continue
        ends = [row.get("scoring") or row.get("site"), row.get("control")]
        parts = [row["task"], row.get("subtask"), row["dataset"], row["metric"], *ends]
        name = "/".join(str(part) for part in parts if part is not None)
        yield Logged(name, row.get("layer") or 0, value)


def _verdict(record: dict[str, Any]) -> str:
    found = verdict(record, panels(record))
    said = [f"{point.head}: {point.text}" for point in found.points]
    return "\n\n".join([*said, f"{found.why} `{found.command}`"])


def _tensorboard(record: dict[str, Any], folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for item in scores(record):
            writer.add_scalar(item.name, item.value, item.layer)
        writer.add_text("verdict", _verdict(record))
        if (folder / FIGURE).is_file():
            picture = np.asarray(Image.open(folder / FIGURE).convert("RGB"))
            writer.add_image("score against stage", picture, dataformats="HWC")


def _wandb(record: dict[str, Any], folder: Path) -> None:
    import wandb

    model = record.get("model") or {}
    kept = {k: record.get(k) for k in ("kind", "command", "seed", "model", "data", "versions")}
    with wandb.init(
        project=PROJECT,
        name=f"{record.get('kind')} {model_name(model)}",
        config=kept,
        notes=_verdict(record),
        dir=str(folder),
    ) as run:
        run.define_metric("layer")
        run.define_metric("*", step_metric="layer")
        by_layer: dict[int, dict[str, float]] = {}
        for item in scores(record):
            by_layer.setdefault(item.layer, {})[item.name] = item.value
        for layer, values in sorted(by_layer.items()):
            run.log({"layer": layer, **values})
        if (folder / FIGURE).is_file():
            run.log({"score against stage": wandb.Image(str(folder / FIGURE))})
