"""Before, training, after: one command, one report.

    python recipes/repair.py                                   # the shipped nano, on scenes
    python recipes/repair.py --recipe train_artifacts --limit 90 steps=100
    python recipes/repair.py --gpus 8 --data blink=DIR model=DIR data=train.jsonl zero=2

Runs the eval suite and the diagnoses of keys and surfacing on the base, trains an adapter in a
process of its own, runs the same on the base with the adapter, and compares. OUT/ then holds
`before/`, `adapter/`, `after/` and the comparison; the adapter's card gets the table. Interrupted,
the same command goes on.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from kvfix import evaluate
from kvfix.compare import run as compare
from kvfix.config import load_config
from kvfix.diagnose import run as diagnose
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.saves import newest_whole
from kvfix.repair.train.starts import finished
from kvfix.report.compare_table import sentences, tables
from kvfix.session import Options
from kvfix.terminal import Interrupted, RichWatch, console, guarded, one_process

HERE = Path(__file__).parent
HEADING = "## Before and after"


def main() -> None:
    """Read the command line and run the three parts."""
    parser = argparse.ArgumentParser(prog="recipes/repair.py", description=__doc__)
    parser.add_argument(
        "--recipe", default="train_surfacing", help="train_surfacing or train_artifacts"
    )
    parser.add_argument("--config", help="YAML file; the recipe's own by default")
    parser.add_argument("--data", action="append", help="what is evaluated: NAME or NAME=DIR")
    parser.add_argument("--limit", type=int, help="units a task")
    parser.add_argument("--gpus", type=int, default=0, help="train under the DeepSpeed launcher")
    parser.add_argument("--out", default="runs/repair", help="folder of everything")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    one_process("python recipes/repair.py", sys.argv[1:])
    guarded(lambda: repair(parser.parse_args()))


def repair(asked: argparse.Namespace) -> None:
    """Everything, in order."""
    out = Path(asked.out)
    config = asked.config or str(HERE / f"{asked.recipe}.yaml")
    overrides = [*asked.overrides, f"out={out / 'adapter'}"]
    recipe = load_config(Recipe, config, overrides)
    measure(recipe, asked, out / "before", adapter=None)
    train(recipe, asked, config, overrides)
    measure(recipe, asked, out / "after", adapter=recipe.out)
    found = compare.compare(
        compare.Options(out / "before" / "eval", out / "after" / "eval", out / "compare"),
        command=" ".join(sys.argv),
    )
    for table in tables(found.record):
        console.print(table)
    console.print(sentences(found.record))
    card = out / "adapter" / "README.md"
    card.write_text(with_table(card.read_text(), found.report.with_suffix(".md").read_text()))
    console.print(f"report: {found.report}")
    console.print(f"surfacing and keys: {out}/before/diagnose and {out}/after/diagnose")


def measure(recipe: Recipe, asked: argparse.Namespace, folder: Path, adapter: str | None) -> None:
    """The eval suite on values, and the diagnoses that the repair is aimed at."""
    same = {
        "model": recipe.model or None,
        "adapter": adapter,
        "processor": recipe.processor or None,
        "dtype": recipe.dtype,
        "quant": recipe.quant or None,
        "data": tuple(asked.data or ("scenes",)),
        "limit": asked.limit,
        "seed": recipe.seed,
    }
    watch, command = RichWatch(), " ".join(sys.argv)
    watch.say(f"measuring into {folder}")
    evaluate.evaluate(
        evaluate.Options(**same, sites=("value",), out=folder / "eval"),
        command=command,
        watch=watch,
    )
    diagnose.diagnose(
        Options(**same, only=("keys", "surfacing"), out=folder / "diagnose"),
        command=command,
        watch=watch,
    )


def train(recipe: Recipe, asked: argparse.Namespace, config: str, overrides: list[str]) -> None:
    """In a process of its own: nothing of DeepSpeed is left when the result is measured."""
    out = Path(recipe.out)
    if finished(out):
        return
    launcher = [sys.executable]
    if asked.gpus:
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(asked.gpus)]
    resume = ["resume=true"] if newest_whole(out).last is not None else []
    script = str(HERE / f"{asked.recipe}.py")
    code = run_through(
        [*launcher, script, "--config", config, *overrides, *resume], launched=bool(asked.gpus)
    )
    if code:
        raise ValueError(f"expected the training to end well, found exit code {code}")


def run_through(words: list[str], *, launched: bool) -> int:
    """Run a command to its end, also after Ctrl-C or SIGTERM: it saves then. Its exit code.

    Raises:
        Interrupted: It was asked to end.
    """
    process = subprocess.Popen(words)
    asked: list[int] = []

    def passed_on(number: int, frame: object) -> None:
        asked.append(number)
        if number == signal.SIGTERM:  # Ctrl-C reaches it without our help
            # The DeepSpeed runner would end and leave its launcher, which is its child, working.
            mine = psutil.Process(process.pid)
            for target in mine.children() if launched else [mine]:
                target.terminate()

    before = {n: signal.signal(n, passed_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and code:
        raise Interrupted("interrupted; the same command goes on where it stopped", 128 + asked[0])
    return code


def with_table(card: str, report: str) -> str:
    """The card with the comparison's sections on answers and probes, in place of an older one."""
    sections = report.split("\n## ")
    kept = [s for s in sections if s.startswith(("What changed", "Answers", "Probes"))]
    text = "\n\n".join(f"### {section.strip()}" for section in kept)
    return f"{card.split(HEADING)[0].rstrip()}\n\n{HEADING}\n\n{text}\n"


if __name__ == "__main__":
    main()
