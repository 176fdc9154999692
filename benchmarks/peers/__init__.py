"""Tools from PyPI, each in an environment of its own and in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
REQUIRES = {"scikit-learn": ("scikit-learn",), "faiss-cpu": ("faiss-cpu", "numpy")}


class NotInstalled(Exception):
    """A tool that cannot be installed here, with pip's reason."""


def python_of(tool: str) -> Path:
    """The Python of a tool's environment, which is made on first use.

    Raises:
        NotInstalled: pip could not install the tool.
    """
    home = Path(os.environ.get("KVFIX_PEERS", Path.home() / ".cache" / "kvfix" / "peers"))
    folder, python = home / tool, home / tool / "bin" / "python"
    if not (folder / "installed").is_file():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", *REQUIRES[tool]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled(f"{tool}: {done.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return python


class Peer:
    """A script beside this file, run by a tool's Python over arrays; a context manager."""

    def __init__(self, tool: str, script: str, **arrays: np.ndarray):
        self._folder = tempfile.TemporaryDirectory()
        inputs = Path(self._folder.name) / "inputs.npz"
        np.savez(inputs, **arrays)  # type: ignore[arg-type]  # the stub takes a name for an option
        self._process = subprocess.Popen(
            [str(python_of(tool)), str(HERE / script), str(inputs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer: dict[str, Any] = {}

    def __call__(self) -> float:
        """Run once; returns the CPU-seconds, the answer stays in `answer`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.answer = json.loads(self._process.stdout.readline())
        return float(self.answer.pop("seconds"))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()
