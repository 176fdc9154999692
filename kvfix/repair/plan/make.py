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

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kvfix.checkpoint import folder as checkpoint
from kvfix.checkpoint.quantised import (
    quantised,
    stored_bytes,
    without_quantisation,
)
from kvfix.checkpoint.strangers import original_llava
from kvfix.mlm.families import family_of
from kvfix.mlm.images.shapes import PixelLimits
from kvfix.mlm.load import Mlm
from kvfix.mlm.processor import load_processor
from kvfix.repair.dry_run import Batch, reading_peak, skeleton, training_peak
from kvfix.repair.lora import LoraOptions, LoraReport, attach
from kvfix.repair.plan.memory import WAYS, Counted, Memory, memory_of
from kvfix.repair.plan.sizes import (
    CLIP_FRAMES,
    as_stored,
    feature_bytes,
    grids_of,
    image_bytes,
    images_a_pass,
    lay_out,
    probe_bytes,
    weight_bytes,
)
from kvfix.shipped import nano_dir


@dataclass(frozen=True)
class PlanOptions:
    """What is planned."""

    lora: LoraOptions = field(default_factory=LoraOptions)  # the adapter
    gpus: int = 1  # on one node
    images: tuple[tuple[int, int], ...] = ((480, 640),)  # height, width of one sample's, pixels
    limits: PixelLimits = field(default_factory=PixelLimits)  # for families that have any
    text_tokens: int = 64  # of one sample, template included
    samples: int = 1  # of one micro-batch
    logit_rows: int = 64  # positions of a sample whose next-word logits the losses read
    checkpointing: bool = True  # layers are recomputed in backward
    dtype: torch.dtype | None = None  # of weights and activations; None is the checkpoint's

    def __post_init__(self) -> None:
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


class Tokens(NamedTuple):
    """Image tokens of one image, alone in its sample."""

    image_hw: tuple[int, int]  # original pixels
    tokens: int  # in the sequence, newlines included
    grid_hw: tuple[int, int]  # cells that kvfix reads


@dataclass(frozen=True)
class Plan:
    """Everything that `kvfix plan` shows."""

    family: str  # `model_type`
    dtype: str  # of weights
    parameters: int  # of the model without the adapter
    report: LoraReport  # matched modules and trainable share
    tokens: tuple[Tokens, ...]  # of each image alone
    sample_tokens: int  # image tokens of one sample with all its images
    memory: tuple[Memory, ...]  # one entry per way to train
    reading: dict[str, int]  # bytes to diagnose the sample without and with nf4, all sites kept
    # The same for `kvfix diagnose --only flow` on clips of the largest of these images, and what
    # each image of a co-segmentation group over so many adds.
    flow: dict[str, int]
    flow_images: int
    flow_image: int

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

    `name` is for messages; a processor gives pixel limits and crops; `stored` are the bytes of a
    quantised checkpoint's tensors, None as its config describes them. What kvfix does not know,
    what does not fit, and a quantised checkpoint that cannot be trained are ValueErrors.
    """
    dtype = options.dtype or config.dtype or torch.float32
    already = quantised(config)
    config = without_quantisation(config)
    mlm = skeleton(config, name=name, dtype=dtype, processor=processor)
    bare = weight_bytes(mlm)  # before the adapter
    if already is not None:
        bare = as_stored(already, mlm, bare, stored, name=name)
    kinds = (None, "nf4") if already is None else ("nf4",)
    parameters = sum(p.numel() for p in mlm.base.parameters())
    largest = max(
        sum(p.numel() for p in module.parameters(recurse=False)) for module in mlm.base.modules()
    )
    batch = plan_batch(mlm, options)
    one_pass = reading_peak(skeleton(config, name=name, dtype=dtype), batch)
    layouts = lay_out(mlm, options.images, options.limits)
    reading = one_pass + options.samples * feature_bytes(mlm, layouts)
    alone = [lay_out(mlm, [size], options.limits)[0] for size in options.images]
    largest_image = max(alone, key=lambda layout: layout.index_HW.numel())
    together = images_a_pass(largest_image)
    flow = together * one_pass + probe_bytes(mlm, largest_image)
    tuned, report = attach(mlm, options.lora)
    counted = Counted(
        weights=bare,
        trained=sum(report.trainable.values()),
        largest=largest,
        activations=training_peak(tuned, batch, checkpointing=options.checkpointing),
        gpus=options.gpus,
        dora=options.lora.dora,
        dtype=dtype,
        already=already,
    )
    return Plan(
        family=mlm.family.model_type,
        dtype=str(dtype).removeprefix("torch."),
        parameters=parameters,
        report=report,
        tokens=tuple(
            Tokens(size, layout.n_tokens, layout.grid_hw)
            for size, layout in zip(options.images, alone, strict=True)
        ),
        sample_tokens=batch.image_tokens,
        memory=tuple(
            memory_of(counted, quant, zero, offload) for quant in kinds for zero, offload in WAYS
        ),
        reading={q or "plain": bare.of(q) + bare.unpacked(q) + reading for q in kinds},
        flow={q or "plain": bare.of(q) + bare.unpacked(q) + flow for q in kinds},
        flow_images=CLIP_FRAMES + together,
        flow_image=image_bytes(mlm, largest_image),
    )


def plan_batch(mlm: Mlm, options: PlanOptions) -> Batch:
    """The micro-batch of a plan."""
    layouts = lay_out(mlm, options.images, options.limits)
    grids = grids_of(mlm, options.images, options.limits)
    config, shapes = mlm.config, mlm.family.image_shapes
    return Batch(
        images=lambda: shapes(options.images, config, layouts, grids),
        image_tokens=sum(layout.n_tokens for layout in layouts),
        text_tokens=options.text_tokens,
        samples=options.samples,
        logit_rows=options.logit_rows,
    )


@dataclass(frozen=True)
class PlanRequest:
    """What the command line of `kvfix plan` can say."""

    plan: PlanOptions
    model: str | None = None  # hub id, folder or config.json; None: the shipped nano
    dtype: str = "auto"
    zero: int | None = None  # this stage only
    nf4: bool | None = None  # with, or without; None: both
    processor: str | None = None  # hub id or folder; None: the model's own, if it has one


def plan(options: PlanRequest) -> Plan:
    """Read the config (and the processor, where there is one) and plan."""
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
    wanted = (
        m
        for m in made.memory
        if options.zero in (None, m.zero) and options.nf4 in (None, m.quant == "nf4")
    )
    return replace(made, memory=tuple(wanted))
