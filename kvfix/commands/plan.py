"""`kvfix plan`: a config -> what would be trained, on how much memory; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from kvfix import checkpoint
from kvfix.families import family_of
from kvfix.processors import load_processor
from kvfix.quantised import stored_bytes
from kvfix.repair.plan import Memory, Plan, PlanOptions, make_plan
from kvfix.shipped import nano_dir
from kvfix.strangers import original_llava


@dataclass(frozen=True)
class Options:
    """What the command line of `kvfix plan` can say."""

    plan: PlanOptions
    model: str | None = None  # hub id, folder or config.json; None: the shipped nano
    dtype: str = "auto"
    zero: int | None = None  # this stage only
    nf4: bool | None = None  # with, or without; None: both
    processor: str | None = None  # hub id or folder; None: the model's own, if it has one


def plan(options: Options) -> Plan:
    """Read the config (and the processor, where there is one) and plan.

    Raises:
        FileNotFoundError: No such model.
        ValueError: One that kvfix does not know, or options that do not fit it.
    """
    from transformers import AutoConfig

    name = options.model or str(nano_dir())
    file, beside, stored = Path(name).expanduser(), None, None
    if file.is_file() and file.suffix == ".json":
        raw = checkpoint.read_json(file)  # its message before transformers'
        if why := original_llava(raw, name):
            raise ValueError(f"{name}: {why}")
        family_of(raw.get("model_type"), where=name)
        config = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    else:
        found = checkpoint.find(name, weights=False)
        folder = found.folder
        family_of(found.config.get("model_type"), where=name)
        config = checkpoint.load_config(folder)
        stored = stored_bytes(folder)
        beside = folder if any(folder.glob("*processor_config.json")) else None
    if options.processor is not None:
        beside, _ = checkpoint.locate(options.processor, weights=False)
    family = family_of(config.model_type, where=name)
    processor = None if beside is None else load_processor(beside, config, family)
    asked = options.plan
    if options.dtype != "auto":
        asked = replace(asked, dtype=getattr(torch, options.dtype))
    made = make_plan(config, asked, name=name, processor=processor, stored=stored)
    return replace(made, memory=tuple(m for m in made.memory if _wanted(m, options)))


def _wanted(memory: Memory, options: Options) -> bool:
    stage = options.zero is None or memory.zero == options.zero
    return stage and (options.nf4 is None or (memory.quant == "nf4") == options.nf4)


def lines(made: Plan, options: Options) -> list[str]:
    """What is planned, for the terminal, as plain text."""
    asked, reading = options.plan, made.reading.items()
    return [
        f"{options.model or 'the shipped nano'}: {made.family}, {made.parameters:,} parameters, "
        f"{made.dtype}",
        *made.report.lines(),
        *(
            f"image of {t.image_hw[0]} x {t.image_hw[1]} pixels (height x width): {t.tokens} "
            f"tokens, grid {t.grid_hw[0]} x {t.grid_hw[1]}"
            for t in made.tokens
        ),
        "to diagnose this sample: "
        + ", with ".join(f"{'' if k == 'plain' else k} {_size(n)}".strip() for k, n in reading),
        f"a step: {asked.samples} x ({made.sample_tokens} image + {asked.text_tokens} text) "
        f"tokens, {'with' if asked.checkpointing else 'without'} gradient checkpointing",
        *(
            f"refused: {m.quant or made.dtype}, ZeRO {m.zero}, offload {m.offload}: {m.refusal}"
            for m in made.memory
            if m.refusal
        ),
    ]


def table(made: Plan, options: Options) -> Table:
    """Memory by way to train; a dash where training would be refused."""
    gpus = options.plan.gpus
    shown = Table(title=f"memory a GPU, {gpus} GPU{'s' * (gpus > 1)}")
    for column in ("weights", "ZeRO", "offload"):
        shown.add_column(column)
    for column in ("frozen", "adapter, optimizer", "activations", "total", "host"):
        shown.add_column(column, justify="right")
    for m in made.memory:
        way = (m.quant or made.dtype, str(m.zero), m.offload)
        bytes_of = (m.weights, m.states, m.activations, m.total, m.host)
        cells = ("-",) * 5 if m.refusal else tuple(map(_size, bytes_of))
        shown.add_row(*way, *cells, style="dim" if m.refusal else None)
    return shown


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
