"""What both training recipes do with their command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvfix.config import load_config
from kvfix.repair.train.launch import typed
from kvfix.repair.train.recipe import Recipe, run
from kvfix.terminal import guarded

HERE = Path(__file__).parent


def main(name: str) -> None:
    """Read the config and run it.

    Args:
        name: Of the recipe; `<name>.yaml` beside it is its default config.
    """
    parser = argparse.ArgumentParser(prog=f"recipes/{name}.py")
    parser.add_argument("--config", default=str(HERE / f"{name}.yaml"), help="YAML file")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # of older launchers
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    options = parser.parse_args()

    def train() -> None:
        recipe = load_config(Recipe, options.config, options.overrides)
        run(recipe, name, root=HERE.parent, command=typed(sys.argv))

    guarded(train)
