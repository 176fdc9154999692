"""Tools from PyPI, each in an environment of its own and in a process of its own.

An environment sees the packages of the one that runs (torch is not downloaded again), and what a
tool requires in other versions is installed over them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.turns import Asked

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
REQUIRES = {
    "scikit-learn": ("scikit-learn",),
    "faiss-cpu": ("faiss-cpu",),
    "nnsight": ("nnsight",),
    "lmms-eval": ("lmms-eval==0.7.3", "decord"),
    "trl": ("trl",),
}


class NotInstalled(Exception):
    """A tool that cannot be installed here, with pip's reason."""


def python_of(tool: str) -> Path:
    """The Python of a tool's environment, which is made on first use.

    Raises:
        NotInstalled: pip could not install the tool.
    """
    home = Path(os.environ.get("KVFIX_PEERS", Path.home() / ".cache" / "kvfix" / "peers"))
    folder, python = home / tool, home / tool / "bin" / "python"
    made_for = "\n".join((*REQUIRES[tool], *_packages()))
    note = folder / "installed"
    if not note.is_file() or note.read_text() != made_for:
        venv.create(folder, with_pip=True, clear=True)
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text("\n".join(_packages()))
        command = [str(python), "-m", "pip", "install", "-q", *REQUIRES[tool]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip() or "no message").splitlines()[-1]
            raise NotInstalled(f"{tool}: {why}")
        note.write_text(made_for)
    return python


def _packages() -> list[str]:
    """Folders of packages that this Python sees."""
    return [path for path in sys.path if path.endswith("-packages")]


def environment() -> dict[str, str]:
    """Variables of a tool's process: one thread, this checkout's kvfix, nothing from a hub."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": path,
    }


class Peer:
    """A script beside this file, run by a tool's Python over arrays; a context manager."""

    def __init__(self, tool: str, script: str, arrays: Mapping[str, Any]):
        python = python_of(tool)
        self._folder = tempfile.TemporaryDirectory()
        inputs, self._answers = (Path(self._folder.name, f"{n}.npz") for n in ("in", "out"))
        np.savez(inputs, **arrays)
        self._tool = tool
        self._said = Path(self._folder.name, "said")
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [str(python), str(HERE / script), str(inputs), str(self._answers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment(),
            )
        self.answer: dict[str, np.ndarray] = {}
        self.memory_mib = 0.0

    def __call__(self) -> float:
        """Run once; returns the CPU-seconds, the answer stays in `answer`."""
        said = self._ask("go")
        self.answer, self.memory_mib = dict(np.load(self._answers)), said["memory_mib"]
        return float(said["seconds"])

    def profile(self) -> str:
        """Which functions a run spends its time in."""
        return self._ask("profile")

    def _ask(self, what: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            why = (self._said.read_text().strip() or "no message").splitlines()
            raise RuntimeError(f"{self._tool}: {why[-1]}")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:  # closes its pipes and waits
            pass
        self._folder.cleanup()


class Peers(NamedTuple):
    """The tools that could be had, and why others could not."""

    by_name: dict[str, Peer]
    missing: tuple[str, ...]


@contextmanager
def peers(asked: Asked, scripts: Mapping[str, str], **arrays: Any) -> Iterator[Peers]:
    """Tools by name, each with its script, over the same arrays; none where `tiny` is asked."""
    found, missing = {}, []
    with ExitStack() as stack:
        for tool, script in {} if asked.tiny else scripts.items():
            try:
                found[tool] = stack.enter_context(Peer(tool, script, arrays))
            except NotInstalled as error:
                missing.append(str(error))
        yield Peers(found, tuple(missing))
