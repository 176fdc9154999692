"""`kvfix merge`: a model and its adapter -> one checkpoint folder for serving."""

from __future__ import annotations

from pathlib import Path

import torch

from kvfix.checkpoint import GATE
from kvfix.models import load_mlm
from kvfix.repair.lora import merge as merge_adapter
from kvfix.shipped import nano_dir


def merge(
    model: str | None,
    *,
    adapter: str,
    out: Path,
    dtype: str = "auto",
    processor: str | None = None,
) -> Path:
    """Write merged weights and processor; needs a process that has not started DeepSpeed.

    Args:
        model: Hub id or folder; None is the shipped nano.
        adapter: PEFT LoRA folder.
        out: Folder to write: new, or empty.
        dtype: "auto" or a torch dtype's name; below float32 the sum is rounded once.
        processor: Hub id or folder of a processor; None is the model's own.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: No such model or adapter.
        ValueError: A folder that holds something, a quantised checkpoint, an adapter that does not
            fit or has a gate beside it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder to merge into, found files in it")
    if (Path(adapter) / GATE).exists():
        raise ValueError(
            f"{adapter}: expected an adapter alone, found {GATE} beside it; weights cannot hold a "
            "gate: it acts in kvfix alone. Train with losses.gate.weight=0, or move the file away "
            "to merge without it"
        )
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    mlm = load_mlm(model or str(nano_dir()), adapter=adapter, processor=processor, dtype=kind)
    merged = merge_adapter(mlm)
    # Only now: a failure above must not leave a folder that looks like a checkpoint.
    merged.model.save_pretrained(out)
    merged.processor.save_pretrained(out)
    return out
