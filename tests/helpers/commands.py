"""The `kvfix` command, in a process of its own or (torch takes seconds to import) in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from kvfix import cli

KVFIX = str(Path(sys.executable).parent / "kvfix")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says why it failed."""
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


class Finished(NamedTuple):
    """A run that nothing interrupted."""

    ended: Ended
    folder: Path
    run: dict[str, Any]


def to_copy(line: str) -> bool:
    """Whether a printed line stays in one piece however long it is: a command or a path."""
    return "Report:" in line or line.startswith(("kvfix ", "python ", "deepspeed "))


def launch(*args: object, timeout: float = 600) -> Ended:
    """Start the installed command."""
    words = [KVFIX, *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=ENV)
    return Ended(done.returncode, done.stdout, done.stderr)


def finish(folder: Path, *args: object) -> Finished:
    """Launch a command that writes a run into a folder, and read what it left."""
    ended = launch(*args, "--out", folder, "--json")
    assert ended.code == 0, ended.err
    return Finished(ended, folder, json.loads((folder / "run.json").read_text()))


def call(*args: object) -> Ended:
    """What `launch` does, through the same entry point in this process, and in no further one."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.object(sys, "argv", ["kvfix", *map(str, args)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main(alone=False)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())
