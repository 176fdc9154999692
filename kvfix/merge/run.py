"""`kvfix merge`: a model and its adapter -> one checkpoint folder for serving, which is proven."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import NamedTuple

import torch

from kvfix.merge.proof import Difference, Words, compare, words_of
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.repair.lora import merge as merge_adapter
from kvfix.runs.atomic import atomic_folder
from kvfix.session import ModelOptions


class Merged(NamedTuple):
    """What was written, and how far its logits are from the adapter's."""

    folder: Path  # weights, config and processor
    differences: list[Difference]  # by prompt


def merge(
    model: str | None,
    *,
    adapter: str,
    out: Path,
    dtype: str = "auto",
    processor: str | None = None,
    force_adapter: bool = False,
    command: str = "kvfix merge",
) -> Merged:
    """Write merged weights and processor; needs a process that has not started DeepSpeed.

    What was saved is loaded again and compared with the model and its adapter; one of the two is in
    memory at a time. Nothing is left behind where anything fails. The folder `out` is new, or
    empty; below float32 the sum is rounded once; `force_adapter` merges an adapter of another
    model, too.
    """
    with atomic_folder(out, command=command) as folder:
        tuned, merged = _save(
            ModelOptions(
                model=model,
                adapter=adapter,
                force_adapter=force_adapter,
                dtype="saved" if dtype == "auto" else dtype,
                processor=processor,
            ).load(),
            folder,
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        again = load_mlm(str(folder), dtype=kind)
        differences = compare(tuned, merged, words_of(again, like=tuned), again.dtype)
    return Merged(out, differences)


def _save(mlm: Mlm, folder: Path) -> tuple[Words, Words]:
    """Merge and save; what was said before and after. The memory is free when this returns."""
    tuned = words_of(mlm)
    merged = merge_adapter(mlm)
    merged.model.save_pretrained(folder)
    merged.processor.save_pretrained(folder)
    return tuned, words_of(merged, like=tuned)
