"""`kvfix data`: what datasets and training data look like, and what is wrong with yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kvfix.terminal import FAILED, RichWatch, console, labelled, note

data_app = typer.Typer(help="The datasets: what they look like on disk, what is wrong with yours.")
TRAIN = "train="
MOST_LINES = 50  # bad records that are listed before they are only counted


@data_app.command("list")
def data_list() -> None:
    """Every dataset: tasks, size, source and the folder tree that is expected."""
    from kvfix.data.catalog import describe
    from kvfix.data.training.forms import TREE

    for row in describe():
        console.print(Text.assemble((row.name, "bold"), f"  ({row.size})  --data {row.spec}"))
        console.print(f"  tasks: {', '.join(row.tasks)}; split {row.split}")
        console.print(f"  {row.source}")
        console.print(Text(f"{row.tree}\n", "dim"))
    yours = "  (training data of your own)  data=FILE, `kvfix data check train=FILE`"
    console.print(Text.assemble(("train", "bold"), yours))
    console.print(Text(TREE, "dim"))


@data_app.command("check")
def data_check(
    spec: Annotated[
        str, typer.Argument(help="NAME=DIR, or train=FILE, DIR or hub id for training data.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Training: folder of the images. Default: that of the data."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Training: hub id or folder; shows what the model will see. No weights."),
    ] = None,
    processor: Annotated[
        str | None, typer.Option(help="Hub id or folder of a processor. Default: the model's own.")
    ] = None,
) -> None:
    """Say in plain words what is missing or wrong in a dataset folder, or in training data."""
    if spec.startswith(TRAIN):
        _check_training(spec.removeprefix(TRAIN), images, model, processor)
        return
    from kvfix.data.catalog import check, notes

    if images or model or processor:
        raise typer.BadParameter("images, model and processor are for train=FILE")
    problems = check(spec)
    for problem in problems:
        console.print(f"- {problem}", soft_wrap=True)
    if problems:
        raise SystemExit(FAILED)
    for line in notes(spec):
        console.print(f"note: {line}")
    console.print(f"{spec}: complete")


def _check_training(
    source: str, images: Path | None, model: str | None, processor: str | None
) -> None:
    from kvfix.commands.check_training import check_training

    found = check_training(
        source, images=images, model=model, processor=processor, watch=RichWatch()
    )
    for bad in found.bad[:MOST_LINES]:
        labelled("-", "red", str(bad))
    if (more := len(found.bad) - MOST_LINES) > 0:
        console.print(f"... and {more} more")
    for line in found.lines.notes:
        note(line)
    if found.example:
        seen = f"as {model} will see it"
        if model is None:
            seen = "as a reader sees it; --model shows it as the model does"
        console.rule(Text(f"the first one, {seen}"))
        for line in found.example:
            console.print(line, soft_wrap=True)
        console.rule()
    console.print(found.summary(), soft_wrap=True)
    if found.bad:
        raise SystemExit(FAILED)
