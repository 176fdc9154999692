"""`kvfix compare`: two runs before and after a change, or what several models have in common."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from kvfix.commands.options import AsJson, Seed
from kvfix.commands.show import show_comparison
from kvfix.terminal import command_line, console, fail, note


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="BEFORE AFTER",
            help="The folders of two runs, before and after the change, on the same data: of "
            "`kvfix eval`, `kvfix diagnose` or `kvfix score --out`. With --correlate, any number "
            "of folders.",
        ),
    ],
    correlate: Annotated[
        bool,
        typer.Option(
            "--correlate",
            help="Instead ask of runs of several models: do language models that gain more over "
            "their projector also answer better? (rank correlation)",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the report goes. Without it, runs/compare or runs/correlate.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prove a change by the same questions before and after it.

    Runs on other data, or scored by other rules, are refused. If more than 5 %
    of a task's units are in one run only, the report is written, but the exit
    code is 1.
    """
    if correlate:
        _correlate(runs, out or Path("runs/correlate"), as_json)
        return
    if len(runs) != 2:
        raise typer.BadParameter(
            f"expected BEFORE and AFTER, found {len(runs)} folders; more need --correlate"
        )
    from kvfix.compare.run import Options
    from kvfix.compare.run import compare as run

    before, after = runs
    options = Options(before, after, out=out or Path("runs/compare"), seed=seed)
    with redirect_stdout(sys.stderr):
        outcome = run(options, command=command_line())
    show_comparison(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        fail(
            "expected at most 5 % of a task's units to be in one run only, found more; "
            "the shared ones are compared"
        )


def _correlate(runs: list[Path], out: Path, as_json: bool) -> None:
    if len(runs) < 2:
        raise typer.BadParameter(f"expected the folders of several runs, found {len(runs)}")
    from kvfix.compare.correlate import CorrelateOptions, correlate
    from kvfix.report.correlate import table

    with redirect_stdout(sys.stderr):
        outcome = correlate(CorrelateOptions(tuple(runs), out), command=command_line())
    console.print(table(outcome.record))
    for line in outcome.record["notes"]:
        note(line)
    console.print(f"{outcome.record['seconds']:.0f} s. Report: {outcome.report}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
