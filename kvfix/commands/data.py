"""`kvfix data`: what datasets and training data look like, and what is wrong with yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kvfix.commands.options import Processor
from kvfix.terminal import FAILED, RichWatch, console, labelled, note

data_app = typer.Typer(help="Show the datasets, and check a folder of yours.")
TRAIN = "train="
MOST_LINES = 50  # bad records that are listed before they are only counted


@data_app.command("list")
def data_list() -> None:
    """Show every dataset: its tasks, source and expected folder."""
    from kvfix.data.catalog import CATALOG
    from kvfix.data.training.forms import TREE

    for row in CATALOG.values():
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
        str,
        typer.Argument(
            metavar="NAME=FOLDER",
            help="A dataset and its folder. Training data is checked as train=FILE, train=FOLDER "
            "or train=ID of Hugging Face.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For training data: where its images lie. Without it, beside the data.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID|FOLDER",
            help="For training data: show the first example as this model will see it. Its weights "
            "are not loaded.",
        ),
    ] = None,
    processor: Processor = None,
) -> None:
    """Say in plain words what is missing or wrong in your data."""
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
