"""What a repair would change and what it would cost, from a config alone.

| figure | where it comes from |
|---|---|
| modules, trainable share | PEFT's own adapter, on the meta device |
| weights | every parameter in its data type; nf4 as bitsandbytes stores it |
| adapter and optimizer, ZeRO 2, 3 | DeepSpeed's estimators, given the trainable parameters alone |
| adapter and optimizer, ZeRO 0, 1 | float32 adapter as PEFT keeps it, gradient, two Adam moments; |
| | at stage 1 the moments are spread over the GPUs |
| activations, logits | counted on tensors without data (`kvfix.repair.dry_run`) |

DeepSpeed's estimators take every parameter to be trained: frozen weights are added here, whole up
to stage 2 and spread at stage 3, where the estimator counts the largest module gathered. Heads
are a fraction of a percent of an adapter and left out, as are the libraries (CUDA's own about
0.5 GiB), the allocator's fragments and gradients that communication buffers hold twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from kvfix.checkpoint import folder as checkpoint
from kvfix.checkpoint.quantised import (
    Quantised,
    abilities,
    estimated_bytes,
    quantised,
    stored_bytes,
    without_quantisation,
)
from kvfix.checkpoint.strangers import original_llava
from kvfix.mlm.families import family_of
from kvfix.mlm.images.layouts import LayoutRequest
from kvfix.mlm.images.shapes import PixelLimits
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Mlm
from kvfix.mlm.processor import load_processor
from kvfix.repair.dry_run import Batch, reading_peak, skeleton, training_peak
from kvfix.repair.lora import LoraOptions, LoraReport, attach
from kvfix.repair.quant import Setup, refusal
from kvfix.shipped import nano_dir

OFFLOADS = ("none", "optimizer", "all")  # all: parameters, too
_WAYS = ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # stage, place in OFFLOADS
_BLOCK, _NESTED = 64, 256  # weights a scale, scales a scale of scales (bitsandbytes nf4)
_CODES = 4 * (16 + 256) + 4  # the two code books and the offset of one nf4 weight, float32


@dataclass(frozen=True)
class PlanOptions:
    """What is planned.

    Attributes:
        lora: The adapter.
        gpus: On one node.
        images: (height, width) of the images of one sample, pixels.
        limits: Pixel limits, for families that have any.
        text_tokens: Of one sample, template included.
        samples: Of one micro-batch.
        logit_rows: Positions of a sample whose next-word logits the losses read.
        checkpointing: Layers are recomputed in backward.
        dtype: Of weights and activations; None is the checkpoint's.
    """

    lora: LoraOptions = field(default_factory=LoraOptions)
    gpus: int = 1
    images: tuple[tuple[int, int], ...] = ((480, 640),)
    limits: PixelLimits = field(default_factory=PixelLimits)
    text_tokens: int = 64
    samples: int = 1
    logit_rows: int = 64
    checkpointing: bool = True
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Refuse what is no batch."""
        counts = {"gpus": self.gpus, "samples": self.samples, "logit_rows": self.logit_rows}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"expected {name} of at least 1, found {count}")
        if self.logit_rows > self.text_tokens:
            raise ValueError(
                f"expected at most as many logit rows as text tokens, found {self.logit_rows} of "
                f"{self.text_tokens}"
            )
        if not self.images or any(min(size) < 1 for size in self.images):
            raise ValueError(f"expected images of at least 1 x 1 pixel, found {self.images}")


class Memory(NamedTuple):
    """Bytes a GPU would hold, by what they are for.

    Attributes:
        quant: None or "nf4".
        zero: ZeRO stage.
        offload: Out of OFFLOADS.
        weights: Frozen.
        states: Adapter, gradients, optimizer; the largest gathered module at stage 3.
        activations: Of one step of one micro-batch, logits included.
        host: Main memory of the node for what is offloaded and for DeepSpeed's buffers.
        refusal: Why this would not be trained, None if it would.
    """

    quant: str | None
    zero: int
    offload: str
    weights: int
    states: int
    activations: int
    host: int
    refusal: str | None

    @property
    def total(self) -> int:
        """All bytes of a GPU."""
        return self.weights + self.states + self.activations


class Tokens(NamedTuple):
    """Image tokens of one image, alone in its sample.

    Attributes:
        image_hw: Original pixels.
        tokens: In the sequence, newlines included.
        grid_hw: Cells that kvfix reads.
    """

    image_hw: tuple[int, int]
    tokens: int
    grid_hw: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Everything that `kvfix plan` shows.

    Attributes:
        family: `model_type`.
        dtype: Of weights.
        parameters: Of the model without the adapter.
        report: Matched modules and trainable share.
        tokens: Of each image alone.
        sample_tokens: Image tokens of one sample with all its images.
        memory: One entry a way to train.
        reading: Bytes to diagnose the sample without and with nf4: weights, a pass, all sites.
    """

    family: str
    dtype: str
    parameters: int
    report: LoraReport
    tokens: tuple[Tokens, ...]
    sample_tokens: int
    memory: tuple[Memory, ...]
    reading: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "report": {**self.report._asdict(), "share": self.report.share},
            "tokens": [t._asdict() for t in self.tokens],
            "memory": [{**m._asdict(), "total": m.total} for m in self.memory],
        }


def make_plan(
    config: Any,
    options: PlanOptions,
    *,
    name: str,
    processor: Any = None,
    stored: int | None = None,
) -> Plan:
    """Plan a repair; no weights are read and no tensor of the model is made.

    Args:
        config: Hugging Face config.
        options: What is planned.
        name: Of the model, for messages.
        processor: Its processor, for its pixel limits and crops; None if there is none.
        stored: Bytes of a quantised checkpoint's tensors; None: as its config describes them.

    Raises:
        ValueError: A model kvfix does not know, a part without modules, sizes that do not fit, or
            a quantised checkpoint that cannot be trained.
    """
    dtype = options.dtype or config.dtype or torch.float32
    already = quantised(config)
    config = without_quantisation(config)
    mlm = skeleton(config, name=name, dtype=dtype, processor=processor)
    bare = weight_bytes(mlm)  # before the adapter
    if already is not None:
        bare = _as_stored(already, mlm, bare, stored, name=name)
    kinds = (None, "nf4") if already is None else ("nf4",)
    parameters = sum(p.numel() for p in mlm.base.parameters())
    largest = max(
        sum(p.numel() for p in module.parameters(recurse=False)) for module in mlm.base.modules()
    )
    batch = plan_batch(mlm, options)
    reading = reading_peak(
        skeleton(config, name=name, dtype=dtype), batch
    ) + options.samples * feature_bytes(mlm, lay_out(mlm, options.images, options.limits))
    tuned, report = attach(mlm, options.lora)
    activations = training_peak(tuned, batch, checkpointing=options.checkpointing)
    return Plan(
        family=mlm.family.model_type,
        dtype=str(dtype).removeprefix("torch."),
        parameters=parameters,
        report=report,
        tokens=tuple(
            Tokens(size, layout.n_tokens, layout.grid_hw)
            for size in options.images
            for layout in lay_out(mlm, [size], options.limits)
        ),
        sample_tokens=batch.image_tokens,
        memory=tuple(
            _memory(
                quant, zero, offload, options, dtype, bare, report, largest, activations, already
            )
            for quant in kinds
            for zero, offload in _WAYS
        ),
        reading={
            quant or "plain": bare.of(quant) + bare.unpacked(quant) + reading for quant in kinds
        },
    )


class WeightBytes(NamedTuple):
    """Bytes of all frozen weights.

    Attributes:
        plain: In the model's data type.
        nf4: With the language model's linear layers quantised.
        largest_unpacked: Of the largest quantised weight, which a pass unpacks.
    """

    plain: int
    nf4: int
    largest_unpacked: int

    def of(self, quant: str | None) -> int:
        """Stored."""
        return self.nf4 if quant == "nf4" else self.plain

    def unpacked(self, quant: str | None) -> int:
        """Held for a moment while a layer runs."""
        return self.largest_unpacked if quant == "nf4" else 0


def weight_bytes(mlm: Mlm) -> WeightBytes:
    """Of a model without an adapter; `load_mlm(quant="nf4")` says which layers are quantised."""
    plain = sum(x.nbytes for x in (*mlm.base.parameters(), *mlm.base.buffers()))
    linear = [m.weight for m in mlm.lm.modules() if isinstance(m, nn.Linear)]
    saved = sum(w.nbytes - nf4_bytes(w.numel()) for w in linear)
    return WeightBytes(plain, plain - saved, max(w.nbytes for w in linear))


def _as_stored(
    already: Quantised, mlm: Mlm, bare: WeightBytes, stored: int | None, *, name: str
) -> WeightBytes:
    """Of a checkpoint that is quantised on disk.

    Raises:
        ValueError: It cannot be trained; the message says how much it takes to read it.
    """
    if stored is None and already.bits is not None:
        stored = estimated_bytes(already, mlm.base, nf4_bytes)
    size = "" if stored is None else f"; its weights take {stored / 2**30:.2f} GiB"
    if not already.trains or stored is None:
        raise ValueError(f"{name}: {abilities(already)}{size}")
    return WeightBytes(bare.plain, stored, bare.largest_unpacked)


def nf4_bytes(numel: int) -> int:
    """Of one weight in nf4 with double quantisation (bitsandbytes): half a byte a number, a byte a
    block of 64, four a block of 256 of these, and two code books.
    """
    blocks = math.ceil(numel / _BLOCK)
    return math.ceil(numel / 2) + blocks + 4 * math.ceil(blocks / _NESTED) + _CODES


def lay_out(mlm: Mlm, sizes: Any, limits: PixelLimits) -> list[Layout]:
    """Layouts of one sample's images from their sizes alone.

    Raises:
        ValueError: Pixel limits for a family that has none, or a processor that is needed.
    """
    grids = _grids(mlm, sizes, limits)
    return mlm.family.layouts(LayoutRequest(list(sizes), mlm.config, mlm.processor, grids))


def _grids(mlm: Mlm, sizes: Any, limits: PixelLimits) -> Any:
    if mlm.family.grids is not None:
        return mlm.family.grids(sizes, mlm.config, mlm.processor, limits)
    if limits != PixelLimits():
        raise ValueError(
            f"expected no pixel limits for {mlm.family.model_type}, whose tiles are in its config, "
            f"found {limits.least} to {limits.most}"
        )
    return None


def plan_batch(mlm: Mlm, options: PlanOptions) -> Batch:
    """The micro-batch of a plan."""
    layouts = lay_out(mlm, options.images, options.limits)
    grids = _grids(mlm, options.images, options.limits)
    config, shapes = mlm.config, mlm.family.image_shapes
    return Batch(
        images=lambda: shapes(options.images, config, layouts, grids),
        image_tokens=sum(layout.n_tokens for layout in layouts),
        text_tokens=options.text_tokens,
        samples=options.samples,
        logit_rows=options.logit_rows,
    )


def feature_bytes(mlm: Mlm, layouts: list[Layout]) -> int:
    """Captured features of one sample at every site and layer.

    Twice in the model's data type (kept by hooks, then on the grid), and once in float32, in which
    probes compute.
    """
    text, config = mlm.config.text_config, mlm.config
    lm_channels = mlm.n_layers * (text.hidden_size + 2 * mlm.n_kv_heads * mlm.head_dim)
    merged = mlm.family.vision_channels(config)
    cells = sum(layout.index_HW.numel() for layout in layouts)
    return cells * (lm_channels + merged + text.hidden_size) * (2 * mlm.dtype.itemsize + 4)


def _memory(
    quant: str | None,
    zero: int,
    offload: int,
    options: PlanOptions,
    dtype: torch.dtype,
    bare: WeightBytes,
    report: LoraReport,
    largest: int,
    activations: int,
    already: Quantised | None,
) -> Memory:
    storage = dtype if quant else None
    if already is not None:
        storage = getattr(torch, already.storage)
    setup = Setup(quant, zero, offload == 2, options.lora.dora, storage, dtype)
    trained = sum(report.trainable.values())
    weights, states, host = bare.of(quant), *_states(zero, offload, trained, largest, options.gpus)
    if zero == 3:
        weights = math.ceil(weights / options.gpus)
    if offload == 2:
        weights, host = 0, host + bare.of(quant)
    return Memory(
        quant=quant,
        zero=zero,
        offload=OFFLOADS[offload],
        weights=weights,
        states=states,
        activations=activations + bare.unpacked(quant),
        host=host,
        refusal=refusal(setup),
    )


def _states(zero: int, offload: int, trained: int, largest: int, gpus: int) -> Iterator[int]:
    """Bytes a GPU, then bytes a node's host, for what is trained."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if zero < 2:
        moments = 8 * trained
        yield 8 * trained + (moments // gpus if zero else moments)
        yield 0
        return
    if zero == 2:
        host, gpu = estimate_zero2_model_states_mem_needs(
            trained, num_gpus_per_node=gpus, cpu_offload=offload > 0
        )
    else:
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            trained,
            largest,
            num_gpus_per_node=gpus,
            cpu_offload=offload > 0,
            cpu_offload_params=offload == 2,
        )
    yield gpu
    yield host


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
