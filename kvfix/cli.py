"""The `kvfix` command. Human output goes to stderr, `--json` to stdout."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

import kvfix

app = typer.Typer(
    name="kvfix",
    help="Find where a multimodal language model loses what it sees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The datasets: what they look like on disk, what is wrong with yours.")
app.add_typer(data_app, name="data", no_args_is_help=True)
score_app = typer.Typer(help="Official metrics on predictions that were made elsewhere.")
app.add_typer(score_app, name="score", no_args_is_help=True)
# No emoji: the id of an SPair pair may end in ":dog:".
console = Console(stderr=True, emoji=False, width=None if sys.stderr.isatty() else 100)

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

Model = Annotated[str | None, typer.Option(help="Hub id or folder. Default: the shipped nano.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT LoRA folder to load on top.")]
Data = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME=DIR; repeatable. Default: scenes. See `kvfix data list`."),
]
Task = Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most N units a task.")]
ScoreAsJson = Annotated[
    bool, typer.Option("--json", help="Print every figure to stdout at full precision.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print run.json to stdout.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(kvfix.__version__)
        raise typer.Exit(DONE)


class RichWatch:
    """Shows phases as progress bars with the time left."""

    def say(self, text: str) -> None:
        """Tell what begins."""
        console.print(f"[dim]{escape(text)} ...[/dim]", soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Callable[[str], None]]:
        """A bar of `total` units."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[now]}"),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(name, total=total, now="")
            yield lambda task: progress.update(bar, advance=1, now=task.replace("_", " "))


@app.command()
def diagnose(
    model: Model = None,
    adapter: Adapter = None,
    data: Data = None,
    task: Task = None,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run resumes.")] = Path(
        "runs/diagnose"
    ),
    heads: Annotated[bool, typer.Option(help="Also score every KV head apart.")] = False,
    reference_encoder: Annotated[
        str | None, typer.Option(help="Bare SigLIP, CLIP or DINOv2 to compare with.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Also run the random-weights control.")] = True,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="auto is the checkpoint's own."),
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="As torch names it, or auto.")] = None,
    quant: Annotated[
        Literal["nf4", "int8"] | None, typer.Option(help="Quantise the language model.")
    ] = None,
    attn: Annotated[
        Literal["sdpa", "eager", "flash_attention_2"] | None,
        typer.Option(help="Attention implementation. Default: transformers' choice."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of bootstrap, halves and controls.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure how much visual information each stage of a model holds."""
    from kvfix.commands.diagnose import Options
    from kvfix.commands.diagnose import diagnose as run

    options = Options(
        model=model,
        adapter=adapter,
        data=tuple(data or ("scenes",)),
        tasks=tuple(task or ()),
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
    command = shlex.join(["kvfix", *sys.argv[1:]])
    with redirect_stdout(sys.stderr):  # libraries print warnings to stdout, which is for --json
        outcome = run(options, command=command, watch=RichWatch())
    _show(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        left, total = len(outcome.record["left_out"]), sum(d["n"] for d in outcome.record["data"])
        console.print(
            "[red]error:[/red] expected at most 5 % of a task's units to be left out, found "
            f"{left} of {total} in all; the others are scored",
            soft_wrap=True,
        )
        raise SystemExit(FAILED)


def _show(record: dict, report: Path) -> None:
    from kvfix.report.table import findings, summary

    console.print(summary(record))
    clear = [f for f in record["findings"] if f["clear"]]
    console.print(findings({**record, "findings": clear}))
    if unclear := len(record["findings"]) - len(clear):
        console.print(f"[dim]{unclear} more without a clear difference: in the report[/dim]")
    for entry in record["left_out"][:10]:
        line = f"[yellow]left out[/yellow] {escape(entry['id'])}: {escape(entry['why'])}"
        console.print(line, soft_wrap=True)
    if len(record["left_out"]) > 10:
        console.print(f"... and {len(record['left_out']) - 10} more units left out")
    cost = f"{record['seconds']:.0f} s, at most {record['peak_memory_mib']:.0f} MiB"
    console.print(f"{cost}. Report: {escape(str(report))}", soft_wrap=True)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Run folder, or one of `kvfix score --out`.")],
    after: Annotated[Path, typer.Argument(help="The same units, scored after the change.")],
    out: Annotated[Path, typer.Option(help="Where compare.json, .html and .md go.")] = Path(
        "runs/compare"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json to stdout.")] = False,
) -> None:
    """Prove a change: paired differences between two runs on the same units.

    Runs on other data, or scored by other rules, are refused. If more than 5 %
    of a task's units are in one run only, the report is written, but the exit
    code is 1.
    """
    from kvfix.commands.compare import Options
    from kvfix.commands.compare import compare as run

    options = Options(before, after, out=out, seed=seed)
    with redirect_stdout(sys.stderr):
        outcome = run(options, command=shlex.join(["kvfix", *sys.argv[1:]]))
    _show_comparison(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        console.print(
            "[red]error:[/red] expected at most 5 % of a task's units to be in one run only, found "
            "more; the shared ones are compared",
            soft_wrap=True,
        )
        raise SystemExit(FAILED)


def _show_comparison(record: dict, report: Path) -> None:
    from kvfix.report.compare_table import sentences, tables

    for table in tables(record):
        console.print(table)
    console.print(sentences(record))
    for note in record["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    for u in record["units"]:
        if u["only_before"] or u["only_after"]:
            ids = ", ".join([*u["only_before"], *u["only_after"]][:5])
            line = (
                f"{u['task']} ({u['dataset']}): {u['shared']} units in both, "
                f"{len(u['only_before'])} only before, {len(u['only_after'])} only after: {ids}"
            )
            console.print(f"[yellow]unmatched[/yellow] {escape(line)}", soft_wrap=True)
    console.print(f"{record['seconds']:.0f} s. Report: {escape(str(report))}", soft_wrap=True)


@data_app.command("list")
def data_list() -> None:
    """Every dataset: tasks, size, source and the folder tree that is expected."""
    from kvfix.data.catalog import describe

    for row in describe():
        console.print(f"[bold]{row.name}[/bold]  ({row.size})  --data {escape(row.spec)}")
        console.print(f"  tasks: {', '.join(row.tasks)}; split {row.split}")
        console.print(f"  {escape(row.source)}")
        console.print(f"[dim]{escape(row.tree)}[/dim]\n")


@data_app.command("check")
def data_check(spec: Annotated[str, typer.Argument(help="NAME=DIR")]) -> None:
    """Say in plain words what is missing or wrong in a dataset folder."""
    from kvfix.data.catalog import check

    problems = check(spec)
    for problem in problems:
        console.print(f"- {problem}", markup=False)
    if problems:
        raise SystemExit(FAILED)
    console.print(f"{spec}: complete", markup=False)


@score_app.command("blink")
def score_blink(
    predictions: Annotated[
        Path,
        typer.Option(
            help="Folder or file: official dump, {idx: text}, lmms-eval samples, VLMEvalKit csv."
        ),
    ],
    answers: Annotated[Path, typer.Option(help='JSON of right answers: {"val_..._1": "(A)"}.')],
    profile: Annotated[
        Literal["kvfix", "official", "lmms-eval", "vlmevalkit"],
        typer.Option(help="Whose rules read the letter out of the text; none asks a judge."),
    ] = "kvfix",
    parsed: Annotated[
        bool, typer.Option("--parsed", help="Trust the dump's parsed letters.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write a scored folder, for `kvfix compare`.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: ScoreAsJson = False,
) -> None:
    """Multiple-choice accuracy of BLINK, macro over tasks and micro over questions.

    A question without prediction, or without parsed answer, is wrong.
    The figures are printed even if more than 5 % of the questions have no
    prediction, but then the exit code is 1.
    """
    from kvfix.commands.score import BlinkOptions
    from kvfix.commands.score import score_blink as run
    from kvfix.report.scores import blink_notes, blink_table

    options = BlinkOptions(predictions, answers, profile, parsed, out, seed)
    outcome = run(options, command=shlex.join(["kvfix", *sys.argv[1:]]))
    console.print(blink_table(outcome.record))
    for note in blink_notes(outcome.record):
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        n, missing = outcome.record["n"], len(outcome.record["missing"])
        console.print(
            "[red]error:[/red] expected predictions for at least 95 % of the questions, found "
            f"{n - missing} of {n}; the others count as wrong",
            soft_wrap=True,
        )
        raise SystemExit(FAILED)


@score_app.command("davis")
def score_davis(
    pred: Annotated[Path, typer.Option(help="Results: <sequence>/<frame>.png, labels as pixels.")],
    gt: Annotated[Path, typer.Option(help="DAVIS folder (val), or <sequence>/<frame>.png.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: ScoreAsJson = False,
) -> None:
    """J, F, recall and decay of DAVIS-2017, semi-supervised.

    The first and the last frame do not count and need no result.
    Void (255) of the truth is background.
    The objects are those of the truth's first frame: one that the results
    lack scores as an empty mask, a label beyond them is an error.
    """
    from kvfix.commands.score_davis import score_davis as run
    from kvfix.report.scores import davis_notes, davis_table

    record = run(pred, gt, watch=RichWatch(), seed=seed)
    console.print(davis_table(record))
    for note in davis_notes(record):
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(record, indent=1))


def main() -> None:
    """Entry point: a clear line instead of a traceback (KVFIX_DEBUG=1 shows the traceback)."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.print("interrupted; the same command goes on where it stopped")
        raise
    except Exception as error:
        if os.environ.get("KVFIX_DEBUG"):
            raise
        console.print(f"[red]error:[/red] {_plain(error)}", soft_wrap=True)
        raise SystemExit(_code(error)) from None


def _plain(error: Exception) -> str:
    text = escape(" ".join(str(error).split()))
    if isinstance(error, ValueError | OSError):
        return text
    # Not one of ours: a library's, or a bug.
    return f"{type(error).__name__}: {text} (KVFIX_DEBUG=1 shows where)"


def _code(error: Exception) -> int:
    from kvfix.data.catalog import WrongSpec

    return WRONG_USAGE if isinstance(error, WrongSpec) else FAILED
