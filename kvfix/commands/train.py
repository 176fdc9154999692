"""`kvfix train` and `kvfix repair`: the recipes' pages, from wherever kvfix is installed."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kvfix.commands.options import Limit, Out
from kvfix.terminal import command_line

Recipe = StrEnum("Recipe", ["surfacing", "artifacts"])
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A YAML file with the settings, or the name of one that is shipped, such as "
        "train_surfacing_7b.yaml. Without it, the recipe's own.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Change settings, such as steps=100.", show_default=False
    ),
]


def train(
    recipe: Annotated[
        Recipe,
        typer.Argument(
            help="surfacing teaches a model to say what its image values hold; artifacts makes "
            "image keys depend on the image again.",
        ),
    ],
    overrides: Overrides = None,
    config: Config = None,
) -> None:
    """Train an adapter that repairs a model.

    With several GPUs: torchrun --nproc_per_node 8 --no-python kvfix train
    surfacing zero=2 ...
    """
    from importlib import import_module

    from kvfix.repair.train.launch import typed
    from kvfix.repair.train.recipe import read_recipe

    page = import_module(f"kvfix.recipes.train_{recipe.value}")
    settings = read_recipe(Path(str(page.__file__)), config, overrides or ())
    page.train(settings, command=typed(["kvfix", *sys.argv[1:]]))


def repair(
    overrides: Overrides = None,
    recipe: Annotated[
        Recipe, typer.Option(help="Which training repairs the model.")
    ] = Recipe.surfacing,
    config: Config = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FOLDER]",
            help="A dataset to measure on before and after; give the option again for more. "
            "Without it, scenes that kvfix paints itself.",
        ),
    ] = None,
    limit: Limit = None,
    gpus: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Train on N GPUs under the DeepSpeed launcher."),
    ] = 0,
    out: Out = Path("runs/repair"),
) -> None:
    """Measure a model, train its repair, measure again, and compare: one command, one report."""
    from kvfix.recipes import repair as page

    page.repair(
        page.Asked(
            recipe=f"train_{recipe.value}",
            config=config,
            data=tuple(data or ("scenes",)),
            limit=limit,
            gpus=gpus,
            out=out,
            overrides=tuple(overrides or ()),
        ),
        command=command_line(),
    )
