"""`kvfix report`: write the reports of run folders again, without a model, and look at them."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from kvfix.terminal import console, labelled

HERE = "127.0.0.1"  # nobody else on the network sees it


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of `kvfix diagnose` or `kvfix eval`, finished or not."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the index of several runs goes.")
    ] = Path("runs"),
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="Serve the page on this machine alone, until Ctrl-C; 0: any port."
        ),
    ] = None,
) -> None:
    """Write reports again from run folders; several get an index to sort."""
    from kvfix.report.html import write_report
    from kvfix.report.index import write_index
    from kvfix.runs.lock import locked

    pages = []
    for run in runs:
        with locked(run, command="kvfix report"):
            pages.append(write_report(run))
    page = pages[0] if len(pages) == 1 else write_index(runs, out)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    if serve is not None:
        _serve(page, [p.parent for p in pages], serve)


def _serve(page: Path, runs: list[Path], port: int) -> None:
    """Serve the folder that holds the page and every run."""
    folders = [page.parent.resolve(), *(run.resolve() for run in runs)]
    root = folders[0]
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    handler = partial(_Quiet, directory=str(root))
    with ThreadingHTTPServer((HERE, port), handler) as server:
        path = page.resolve().relative_to(root).as_posix()
        labelled("serving", "green", f"http://{HERE}:{server.server_port}/{path}, until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""
