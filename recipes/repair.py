"""Before, training, after: one command, one report.

    python recipes/repair.py                                          # the shipped nano, on scenes
    python recipes/repair.py --limit 4 --out /tmp/try steps=3 batch=4 # CPU demo: two minutes
    python recipes/repair.py --recipe train_artifacts --limit 90 steps=100
    python recipes/repair.py --gpus 8 --data blink=DIR model=DIR data=train.jsonl zero=2
    kvfix repair --limit 90                                           # the same from a wheel

Runs the eval suite and the diagnoses of keys and surfacing on the base, trains an adapter in a
process of its own, runs the same on the base with the adapter, and compares. OUT/ then holds
`before/`, `adapter/`, `after/` and the comparison; the adapter's card gets the table. Interrupted,
the same command goes on. The nano takes about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfix import evaluate
from kvfix.compare import run as compare
from kvfix.diagnose import run as diagnose
from kvfix.repair.train.card import with_table
from kvfix.repair.train.launch import run_to_its_end
from kvfix.repair.train.recipe import Recipe, read_recipe
from kvfix.repair.train.resume import finished
from kvfix.repair.train.saves import newest_whole
from kvfix.report.compare_table import sentences, tables
from kvfix.session import Options
from kvfix.terminal import RichWatch, console, guarded, one_process

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    recipe: str = "train_surfacing"  # or train_artifacts
    config: str | None = None  # YAML file; None: the recipe's own
    data: tuple[str, ...] = ("scenes",)  # what is measured: NAME or NAME=DIR
    limit: int | None = None  # units per task
    gpus: int = 0  # train under the DeepSpeed launcher; 0: in one process
    out: Path = Path("runs/repair")  # folder of everything
    overrides: tuple[str, ...] = ()  # key=value of the recipe

    @property
    def page(self) -> Path:
        """The recipe's page."""
        return HERE / f"{self.recipe}.py"


def repair(asked: Asked, *, command: str) -> None:
    """Measure, train, measure again, compare."""
    overrides = [*asked.overrides, f"out={asked.out / 'adapter'}"]
    recipe = read_recipe(asked.page, asked.config, overrides)

    measure(recipe, asked, asked.out / "before", adapter=None, command=command)
    train(recipe, asked, overrides)
    measure(recipe, asked, asked.out / "after", adapter=recipe.out, command=command)

    before, after = asked.out / "before" / "eval", asked.out / "after" / "eval"
    found = compare.compare(compare.Options(before, after, asked.out / "compare"), command=command)
    for table in tables(found.record):
        console.print(table)
    console.print(sentences(found.record))
    card = asked.out / "adapter" / "README.md"
    card.write_text(with_table(card.read_text(), found.report.with_suffix(".md").read_text()))
    console.print(f"report: {found.report}")
    console.print(f"surfacing and keys: {asked.out}/before/diagnose and {asked.out}/after/diagnose")


def measure(
    recipe: Recipe, asked: Asked, folder: Path, *, adapter: str | None, command: str
) -> None:
    """The eval suite on values, and the diagnoses that the repair is aimed at."""
    same: dict[str, Any] = {
        "model": recipe.model or None,
        "adapter": adapter,
        "processor": recipe.processor or None,
        "dtype": recipe.dtype,
        "quant": recipe.quant or None,
        "data": asked.data,
        "limit": asked.limit,
        "seed": recipe.seed,
    }
    watch = RichWatch()
    watch.say(f"measuring into {folder}")
    suite = evaluate.Options(**same, sites=("value",), out=folder / "eval")
    evaluate.evaluate(suite, command=command, watch=watch)
    diagnoses = Options(**same, only=("keys", "surfacing"), out=folder / "diagnose")
    diagnose.diagnose(diagnoses, command=command, watch=watch)


def train(recipe: Recipe, asked: Asked, overrides: list[str]) -> None:
    """In a process of its own: nothing of DeepSpeed is left when the result is measured."""
    out = Path(recipe.out)
    if finished(out):
        return
    launcher = [sys.executable]
    if asked.gpus:
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(asked.gpus)]
    config = ["--config", asked.config] if asked.config else []
    resume = ["resume=true"] if newest_whole(out).last is not None else []
    words = [*launcher, str(asked.page), *config, *overrides, *resume]
    code = run_to_its_end(words, launched=bool(asked.gpus))
    if code:
        raise ValueError(f"expected the training to end well, found exit code {code}")


def main() -> None:
    """Read the command line of this page as a script."""
    parser = argparse.ArgumentParser(prog="recipes/repair.py", description=__doc__)
    parser.add_argument("--recipe", default=Asked.recipe, help="train_surfacing or train_artifacts")
    parser.add_argument("--config", help="YAML file; the recipe's own by default")
    parser.add_argument("--data", action="append", help="what is measured: NAME or NAME=DIR")
    parser.add_argument("--limit", type=int, help="units per task")
    parser.add_argument("--gpus", type=int, default=0, help="train under the DeepSpeed launcher")
    parser.add_argument("--out", type=Path, default=Asked.out, help="folder of everything")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    one_process("python recipes/repair.py", sys.argv[1:])
    found = vars(parser.parse_args())
    found |= {"data": tuple(found["data"] or Asked.data), "overrides": tuple(found["overrides"])}
    guarded(lambda: repair(Asked(**found), command=" ".join(sys.argv)))


if __name__ == "__main__":
    main()
