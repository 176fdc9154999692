"""The `kvfix` command. Human output goes to stderr, `--json` to stdout."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

import kvfix
from kvfix.commands.data import data_app
from kvfix.commands.repair import merge, plan
from kvfix.commands.score import score_app
from kvfix.terminal import (
    DONE,
    RichWatch,
    command_line,
    console,
    fail,
    guarded,
    labelled,
    note,
    one_process,
)

if TYPE_CHECKING:
    from kvfix.session import Outcome

app = typer.Typer(
    name="kvfix",
    help="Find where a multimodal language model loses what it sees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data", no_args_is_help=True)
app.add_typer(score_app, name="score", no_args_is_help=True)
app.command()(plan)
app.command()(merge)

Model = Annotated[str | None, typer.Option(help="Hub id or folder. Default: the shipped nano.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT LoRA folder or hub id to load on top.")]
ForceAdapter = Annotated[
    bool, typer.Option("--force-adapter", help="Load an adapter of another model, too.")
]
Processor = Annotated[
    str | None,
    typer.Option(help="Hub id or folder of a processor. Default: the model's own."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME=DIR; repeatable. Default: scenes. See `kvfix data list`."),
]
Task = Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most N units a task.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print run.json to stdout.")]
Heads = Annotated[bool, typer.Option(help="Also score every KV head apart.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto is the checkpoint's own."),
]
Device = Annotated[str | None, typer.Option(help="As torch names it, or auto.")]
Quant = Annotated[Literal["nf4", "int8"] | None, typer.Option(help="Quantise the language model.")]
Attn = Annotated[
    Literal["sdpa", "eager", "flash_attention_2"] | None,
    typer.Option(help="Attention implementation. Default: transformers' choice."),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(kvfix.__version__)
        raise typer.Exit(DONE)


@app.command()
def diagnose(
    model: Model = None,
    adapter: Adapter = None,
    processor: Processor = None,
    force_adapter: ForceAdapter = False,
    data: Data = None,
    task: Task = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="flow, keys, prefix or surfacing; repeatable. Default: all four."),
    ] = None,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run resumes.")] = Path(
        "runs/diagnose"
    ),
    heads: Heads = False,
    reference_encoder: Annotated[
        str | None, typer.Option(help="Bare SigLIP, CLIP or DINOv2 to compare with.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Also run the random-weights control.")] = True,
    dtype: Dtype = "auto",
    device: Device = None,
    quant: Quant = None,
    attn: Attn = None,
    seed: Annotated[int, typer.Option(min=0, help="Of bootstrap, halves and controls.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how much visual information each stage of a model holds."""
    from kvfix.diagnose.run import diagnose as run
    from kvfix.session import PARTS, Options

    options = Options(
        model=model,
        adapter=adapter,
        processor=processor,
        force_adapter=force_adapter,
        data=tuple(data or ("scenes",)),
        tasks=tuple(task or ()),
        only=tuple(only or PARTS),
        limit=limit,
        out=out,
        heads=heads,
        reference_encoder=reference_encoder,
        control=control,
        dtype=dtype,
        device=device,
        quant=quant,
        attn=attn,
        seed=seed,
    )
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        outcome = run(options, command=command_line(), watch=RichWatch())
    _end(outcome, as_json)


@app.command(name="eval")
def evaluate(
    model: Model = None,
    adapter: Adapter = None,
    processor: Processor = None,
    force_adapter: ForceAdapter = False,
    data: Data = None,
    task: Task = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="vision, projector, hidden, key or value; repeatable. Default: all."),
    ] = None,
    heads: Heads = False,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run resumes.")] = Path(
        "runs/eval"
    ),
    profile: Annotated[
        Literal[
            "kvfix",
            "official",
            "lmms-eval",
            "lmms-eval@before-1435",
            "vlmevalkit",
            "vlmevalkit@before-1552",
        ],
        typer.Option(help="Rules that read a letter from a written answer."),
    ] = "kvfix",
    order: Annotated[
        Literal["images-first", "text-first"], typer.Option(help="Of a question's parts.")
    ] = "images-first",
    concat: Annotated[
        bool, typer.Option(help="Join a question's images into one, for single-image models.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 8,
    dtype: Dtype = "auto",
    device: Device = None,
    quant: Quant = None,
    attn: Attn = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run the suite: probes at every asked site, multiple-choice answers, readouts."""
    from kvfix.eval.mcq.answer import McqProtocol
    from kvfix.evaluate import Options
    from kvfix.evaluate import evaluate as run
    from kvfix.mlm.capture import SITES

    options = Options(
        model=model,
        adapter=adapter,
        processor=processor,
        force_adapter=force_adapter,
        data=tuple(data or ("scenes",)),
        tasks=tuple(task or ()),
        sites=tuple(site or SITES),
        heads=heads,
        limit=limit,
        out=out,
        mcq=McqProtocol(profile=profile, order=order, concat=concat, batch=batch),
        dtype=dtype,
        device=device,
        quant=quant,
        attn=attn,
        seed=seed,
    )
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        outcome = run(options, command=command_line(), watch=RichWatch())
    _end(outcome, as_json)


def _end(outcome: Outcome, as_json: bool) -> None:
    """Show what a run found, and fail if too much of its data could not be used."""
    _show(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        left, total = len(outcome.record["left_out"]), sum(d["n"] for d in outcome.record["data"])
        fail(
            "expected at most 5 % of a task's units to be left out, found "
            f"{left} of {total} in all; the others are scored"
        )


def _show(record: dict, report: Path) -> None:
    from kvfix.report import surfacing
    from kvfix.report.questions import boards, table
    from kvfix.report.stages import clean, headline_panels
    from kvfix.report.table import findings, summary

    if any(panel.staged for panel in headline_panels(clean(record))):
        console.print(summary(record))
    for board in boards(clean(record)):
        console.print(table(board))
    if record.get("surfacing"):
        console.print(surfacing.table(record))
    said = [f for f in record["findings"] if not f["id"].startswith("surfacing")]  # in the table
    clear = [f for f in said if f["clear"]]
    if clear or not record["findings"]:
        console.print(findings({**record, "findings": clear}))
    if unclear := len(said) - len(clear):
        console.print(Text(f"{unclear} more without a clear difference: in the report", "dim"))
    for line in record.get("notes") or []:
        note(line)
    for entry in record["left_out"][:10]:
        labelled("left out", "yellow", f"{entry['id']:.200}: {entry['why']}")
    if len(record["left_out"]) > 10:
        console.print(f"... and {len(record['left_out']) - 10} more units left out")
    cost = f"{record['seconds']:.0f} s, at most {record['peak_memory_mib']:.0f} MiB"
    console.print(f"{cost}. Report: {report}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="BEFORE AFTER",
            help="Two run folders, or two of `kvfix score --out`: the same units, scored before "
            "and after the change. With --correlate any number of run folders.",
        ),
    ],
    correlate: Annotated[
        bool,
        typer.Option(
            "--correlate",
            help="Over runs of several models: rank correlation of the language model's gain on "
            "its projector with the accuracy of its answers.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the .json, .html and .md go. Default: runs/compare or correlate."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the .json to stdout.")] = False,
) -> None:
    """Prove a change: paired differences between two runs on the same units.

    Runs on other data, or scored by other rules, are refused. If more than 5 %
    of a task's units are in one run only, the report is written, but the exit
    code is 1.
    """
    if correlate:
        _correlate(runs, out or Path("runs/correlate"), as_json)
        return
    from kvfix.compare.run import Options
    from kvfix.compare.run import compare as run

    if len(runs) != 2:
        raise typer.BadParameter(
            f"expected BEFORE and AFTER, found {len(runs)} folders; more need --correlate"
        )
    before, after = runs
    options = Options(before, after, out=out or Path("runs/compare"), seed=seed)
    with redirect_stdout(sys.stderr):
        outcome = run(options, command=command_line())
    _show_comparison(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        fail(
            "expected at most 5 % of a task's units to be in one run only, found more; "
            "the shared ones are compared"
        )


def _correlate(runs: list[Path], out: Path, as_json: bool) -> None:
    from kvfix.compare.correlate import CorrelateOptions, correlate
    from kvfix.report.correlate import table

    if len(runs) < 2:
        raise typer.BadParameter(f"expected the folders of several runs, found {len(runs)}")
    with redirect_stdout(sys.stderr):
        outcome = correlate(CorrelateOptions(tuple(runs), out), command=command_line())
    console.print(table(outcome.record))
    for line in outcome.record["notes"]:
        note(line)
    console.print(f"{outcome.record['seconds']:.0f} s. Report: {outcome.report}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))


def _show_comparison(record: dict, report: Path) -> None:
    from kvfix.report.compare_table import sentences, tables

    for table in tables(record):
        console.print(table)
    console.print(sentences(record))
    for line in record["notes"]:
        note(line)
    for u in record["units"]:
        if u["only_before"] or u["only_after"]:
            ids = ", ".join(f"{i:.60}" for i in [*u["only_before"], *u["only_after"]][:5])
            line = (
                f"{u['task']} ({u['dataset']}): {u['shared']} units in both, "
                f"{len(u['only_before'])} only before, {len(u['only_after'])} only after: {ids}"
            )
            labelled("unmatched", "yellow", line)
    console.print(f"{record['seconds']:.0f} s. Report: {report}", soft_wrap=True)


def main() -> None:
    """Entry point."""
    one_process("kvfix", sys.argv[1:])
    guarded(app)
