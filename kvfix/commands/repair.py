"""`kvfix plan` and `kvfix merge`: before a repair, and after it."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvfix.commands.options import ForceAdapter, Model, Processor
from kvfix.terminal import command_line, console, fail, told

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto is the checkpoint's own."),
]


def plan(
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or config.json. Default: the shipped nano.")
    ] = None,
    processor: Processor = None,
    zero: Annotated[
        int | None, typer.Option(min=0, max=3, help="Only this ZeRO stage. Default: all.")
    ] = None,
    nf4: Annotated[
        bool | None, typer.Option("--nf4/--no-nf4", help="Only with or without. Default: both.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="On one node.")] = 1,
    part: Annotated[
        list[str] | None,
        typer.Option(help="lm, projector or vision; repeatable. Default: lm."),
    ] = None,
    only: Annotated[str, typer.Option(help="Regex on full names of the modules to adapt.")] = "",
    rank: Annotated[int, typer.Option(min=1, help="Of the adapter.")] = 16,
    dora: Annotated[bool, typer.Option("--dora", help="DoRA instead of LoRA.")] = False,
    image: Annotated[
        list[str] | None,
        typer.Option(help="HEIGHTxWIDTH of a sample's image; repeatable. Default: 480x640."),
    ] = None,
    min_pixels: Annotated[
        int | None, typer.Option(min=1, help="Images are scaled up to this (Qwen).")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Images are scaled down to this (Qwen).")
    ] = None,
    text: Annotated[int, typer.Option(min=1, help="Text tokens a sample.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Samples a micro-batch.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Recompute layers in backward.")] = True,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan to stdout.")] = False,
) -> None:
    """Say what a repair would train and how much memory it takes.

    No weights are loaded.
    """
    images = tuple(_size(size) for size in image or ("480x640",))
    from kvfix.mlm.images.shapes import PixelLimits
    from kvfix.repair.lora import LoraOptions
    from kvfix.repair.plan.make import PlanOptions, PlanRequest
    from kvfix.repair.plan.make import plan as run
    from kvfix.repair.plan.show import lines, table

    options = PlanRequest(
        PlanOptions(
            lora=LoraOptions(parts=tuple(part or ("lm",)), only=only, rank=rank, dora=dora),
            gpus=gpus,
            images=images,
            limits=PixelLimits(min_pixels, max_pixels),
            text_tokens=text,
            logit_rows=text,
            samples=batch,
            checkpointing=checkpointing,
        ),
        model=model,
        processor=processor,
        dtype=dtype,
        zero=zero,
        nf4=nf4,
    )
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        made = run(options)
    for line in lines(made, options):
        told(line)
    console.print(table(made, options))
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=1))
    if all(m.refusal for m in made.memory):
        fail("expected a way to train, found every asked one refused")


def merge(
    adapter: Annotated[str, typer.Option(help="PEFT LoRA folder or hub id.")],
    out: Annotated[Path, typer.Option(help="New folder for weights and processor.")],
    model: Model = None,
    processor: Processor = None,
    force_adapter: ForceAdapter = False,
    dtype: Dtype = "auto",
) -> None:
    """Add an adapter into the weights, for serving without PEFT.

    The saved model is loaded again, and its logits are compared with those of
    the model and its adapter; one that differs is not kept.
    """
    from kvfix.merge.run import merge as run

    with redirect_stdout(sys.stderr):
        merged = run(
            model,
            adapter=adapter,
            out=out,
            dtype=dtype,
            processor=processor,
            force_adapter=force_adapter,
            command=command_line(),
        )
    for found in merged.differences:
        console.print(
            f"{found.prompt} prompt: logits differ by at most {found.largest:.2g} from the "
            f"adapter's ({found.allowed:.2g} allowed)",
            soft_wrap=True,
        )
    console.print(f"merged weights and processor: {merged.folder}", soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, or a typer.BadParameter."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise typer.BadParameter(f"expected HEIGHTxWIDTH such as 480x640, found {text!r}")
    return int(height), int(width)
