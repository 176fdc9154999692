"""The `kvfix` command. Human output goes to stderr, `--json` to stdout."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
console = Console(stderr=True, width=None if sys.stderr.isatty() else 100)

DONE, FAILED, INTERRUPTED = 0, 1, 130

Model = Annotated[str | None, typer.Option(help="Hub id or folder. Default: the shipped nano.")]
Adapter = Annotated[str | None, typer.Option(help="PEFT LoRA folder to load on top.")]
Data = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME=DIR; repeatable. Default: scenes. See `kvfix data list`."),
]
Task = Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most N units a task.")]
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
        console.print(f"[dim]{text} ...[/dim]")

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
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="As torch names it, or auto.")] = None,
    quant: Annotated[str | None, typer.Option(help="nf4 or int8.")] = None,
    attn: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")] = None,
    seed: Annotated[int, typer.Option(help="Of bootstrap, k-means and controls.")] = 0,
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
    outcome = run(options, command=command, watch=RichWatch())
    _show(outcome.record, outcome.report)
    if as_json:
        typer.echo(json.dumps(outcome.record, indent=1))
    if outcome.failed:
        raise SystemExit(FAILED)


def _show(record: dict, report: Path) -> None:
    from kvfix.report.table import findings, summary

    console.print(summary(record))
    console.print(findings(record))
    for entry in record["left_out"][:10]:
        console.print(f"[yellow]left out[/yellow] {escape(entry['id'])}: {escape(entry['why'])}")
    if len(record["left_out"]) > 10:
        console.print(f"... and {len(record['left_out']) - 10} more units left out")
    console.print(f"{record['seconds']:.0f} s. Report: {report}", soft_wrap=True)


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
    console.print(f"{spec}: complete")


def main() -> None:
    """Entry point: a clear line instead of a traceback (KVFIX_DEBUG=1 shows the traceback)."""
    try:
        app()
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it stopped")
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if os.environ.get("KVFIX_DEBUG"):
            raise
        console.print(f"[red]error:[/red] {_plain(error)}", soft_wrap=True)
        raise SystemExit(FAILED) from None


def _plain(error: Exception) -> str:
    return escape(" ".join(str(error).split()))
