"""The `kvfix` command. Human output goes to stderr, `--json` to stdout."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from enum import StrEnum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import kvfix
from kvfix.commands.compare import compare
from kvfix.commands.data import data_app
from kvfix.commands.families import families
from kvfix.commands.options import (
    Adapter,
    AsJson,
    Attn,
    Clips,
    Data,
    Device,
    Dtype,
    ForceAdapter,
    Format,
    Heads,
    Limit,
    Model,
    Out,
    Processes,
    Processor,
    Profile,
    Quant,
    ReportTo,
    Seed,
    Task,
)
from kvfix.commands.processes import how_many, shared
from kvfix.commands.repair import merge, plan
from kvfix.commands.report import report
from kvfix.commands.score import score_app
from kvfix.commands.show import show
from kvfix.commands.train import repair, train
from kvfix.launchers import SHARED, rank, without_rank
from kvfix.terminal import (
    DONE,
    RichWatch,
    command_line,
    console,
    fail,
    guarded,
    note,
    one_process,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from kvfix.runs.folder import Outcome

app = typer.Typer(
    name="kvfix",
    help="Find where a multimodal language model loses what it sees, repair it, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(score_app, name="score", no_args_is_help=True)
app.add_typer(data_app, name="data", no_args_is_help=True)


ALONE = "alone"  # the context of a command line that may start further processes
Diagnosis = StrEnum("Diagnosis", ["flow", "keys", "prefix", "surfacing"])
Site = StrEnum("Site", ["vision", "projector", "hidden", "key", "value"])


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(kvfix.__version__)
        raise typer.Exit(DONE)


@app.command()
def diagnose(
    context: typer.Context,
    model: Model = None,
    adapter: Adapter = None,
    processor: Processor = None,
    force_adapter: ForceAdapter = False,
    data: Data = None,
    task: Task = None,
    only: Annotated[
        list[Diagnosis] | None,
        typer.Option(help="Run only this diagnosis; give the option again for more."),
    ] = None,
    limit: Limit = None,
    out: Out = Path("runs/diagnose"),
    heads: Heads = False,
    clips: Clips = "frames",
    reference_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ID|FOLDER",
            help="Also measure this SigLIP, CLIP or DINOv2 encoder by itself, to compare with.",
        ),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            help="Also measure the same model with random weights: what needs no training at all."
        ),
    ] = True,
    dtype: Dtype = "auto",
    device: Device = None,
    quant: Quant = None,
    attn: Attn = None,
    processes: Processes = None,
    report_to: ReportTo = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find where a model loses what it sees.

    Four diagnoses, written as a report that a browser opens: flow (how much of
    the image each stage holds), keys (image keys that depend on no image),
    prefix (what a text before the image changes) and surfacing (questions whose
    answer the model holds while it gives another).
    """
    typed = locals()
    with _begun("kvfix.diagnose.run", typed):
        from kvfix.diagnose.run import diagnose as run
        from kvfix.session import Options

        options = _options(Options, typed, only=tuple(map(str, only or Diagnosis)))
        _run(run, options, as_json, report_to)


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    model: Model = None,
    adapter: Adapter = None,
    processor: Processor = None,
    force_adapter: ForceAdapter = False,
    data: Data = None,
    task: Task = None,
    site: Annotated[
        list[Site] | None,
        typer.Option(
            help="Read features only at this place in the model; give the option again for more. "
            "Without it, at all of them."
        ),
    ] = None,
    heads: Heads = False,
    clips: Clips = "frames",
    limit: Limit = None,
    out: Out = Path("runs/eval"),
    profile: Annotated[
        Profile,
        typer.Option(
            help="Whose rules find the chosen letter in a written answer: kvfix's own, the "
            "benchmark's official ones, or those of another evaluation tool."
        ),
    ] = "kvfix",
    order: Annotated[
        Literal["images-first", "text-first"],
        typer.Option(help="Whether a question's images stand before or after its text."),
    ] = "images-first",
    concat: Annotated[
        bool,
        typer.Option(
            help="Join the images of a question into one, for models that take only one image."
        ),
    ] = False,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Answer N questions at the same time.")
    ] = 8,
    answer_with: Annotated[
        str | None,
        typer.Option(
            metavar="vllm|URL",
            help="Let vLLM write the answers: start a server for it (pip install 'kvfix[vllm]'), "
            "or ask the one at http://HOST:PORT. Only multiple-choice questions are asked then.",
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    quant: Quant = None,
    attn: Attn = None,
    processes: Processes = None,
    format_: Format = None,
    report_to: ReportTo = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure what a model's features hold and how it answers.

    Probes read the features at every asked place in the model; the model
    answers multiple-choice questions; readouts answer them from the features
    alone. Two such runs can be compared by `kvfix compare`.
    """
    typed = locals()
    with _begun("kvfix.evaluate", typed):
        from kvfix.eval.mcq.prompt import McqProtocol
        from kvfix.evaluate import Options
        from kvfix.evaluate import evaluate as run

        mcq = McqProtocol(profile=profile, order=order, concat=concat, batch=batch)
        options = _options(Options, typed, sites=tuple(map(str, site or Site)), mcq=mcq)
        if answer_with is not None:
            from kvfix.commands.served import evaluate_served

            run = partial(evaluate_served, where=answer_with)
        _run(run, options, as_json, report_to, format_)


def _write_lmms_eval(run: Path) -> None:
    from kvfix.report.export.lmms_eval import write_lmms_eval

    results = write_lmms_eval(run)
    if results is None:
        note("--format lmms-eval: no question was answered, so there is nothing to write")
    else:
        console.print(f"As lmms-eval writes it: {results}", soft_wrap=True)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage among what is imported: it takes a second or two, and finds none."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _begun(module: str, typed: dict[str, Any]) -> Iterator[None]:
    """Refuse a wrong name, and say a first word, before what takes seconds is imported.

    Further processes share what follows, if this one may start them.
    """
    from kvfix.data.catalog import check_words
    from kvfix.report.export.trackers import need

    check_words(typed["data"] or ("scenes",), tasks=typed["task"])
    if typed["report_to"] is not None:
        need(typed["report_to"])
    processes = 1
    if typed.get("answer_with") is not None:
        if typed["processes"] not in (None, 1):
            raise typer.BadParameter("--processes: expected it without --answer-with, found both")
    elif typed["context"].obj == ALONE:
        processes = how_many(
            typed["processes"],
            typed["model"],
            limit=typed["limit"],
            device=typed["device"],
            encoder=typed.get("reference_encoder"),
        )
    with shared(processes):
        if module not in sys.modules:
            with RichWatch().phase("starting"), _uncollected():
                import_module(module)
        yield


def _options(kind: type[DataclassInstance], typed: dict[str, Any], **made: Any) -> Any:
    """Options of a run: what is `made` of the command's words, the others as they were typed."""
    made |= {"data": tuple(typed["data"] or ("scenes",)), "tasks": tuple(typed["task"] or ())}
    same = {f.name for f in fields(kind)} & typed.keys() - made.keys()
    return kind(**made, **{name: typed[name] for name in same})


def _run(
    run: Callable[..., Outcome],
    options: Any,
    as_json: bool,
    tracker: str | None,
    form: str | None = None,
) -> None:
    """Run it, show what it found, and fail if too much of its data could not be used."""
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        outcome = run(options, command=command_line(), watch=RichWatch())
    show(outcome.record, outcome.report)
    found = rank()
    first = found is None or found.number == 0
    if form is not None and first:
        _write_lmms_eval(outcome.report.parent)
    if tracker is not None and first:
        from kvfix.report.export.trackers import log_run

        with redirect_stdout(sys.stderr):
            log_run(outcome.record, outcome.report.parent, tracker)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        left, total = len(outcome.record["left_out"]), sum(d["n"] for d in outcome.record["data"])
        fail(
            "expected at most 5 % of a task's units to be left out, found "
            f"{left} of {total} in all; the others are scored"
        )


app.command()(compare)
app.command()(plan)
app.command()(train)
app.command()(repair)
app.command()(merge)
app.command()(families)
app.command()(report)


def main(*, alone: bool = True) -> None:
    """Entry point; not `alone` where another process of this machine has started this one."""
    one_process("kvfix", sys.argv[1:])
    words = without_rank(sys.argv[1:])
    run = partial(app, words, obj=ALONE if alone else None)
    try:
        guarded(run, together=bool(words) and words[0] in SHARED)
    finally:
        gc.freeze()  # the process ends: nothing is left to look for among millions of objects
