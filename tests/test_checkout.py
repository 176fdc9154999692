"""A checkout on the path, and nothing installed: `kvfix.eval` and the nanos lie beside `kvfix/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

from kvfix import checkout

LOOK = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
import kvfix, kvfix.eval, kvfix.eval.stats.bootstrap
print(kvfix.__file__, kvfix.eval.__file__, sep="\\n")
"""


def found(home: Path) -> list[Path]:
    """Where a Python without an installation finds kvfix and kvfix.eval, started in `home`."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    return [Path(line).parent for line in done.stdout.splitlines()]


def copied(where: Path, *names: str) -> None:
    for name in names:
        shutil.copy(ROOT / name, where / Path(name).name)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with as much of a checkout as the imports above need."""
    for part in ("kvfix", "eval", "eval/stats"):
        (tmp_path / part).mkdir()
    copied(tmp_path / "kvfix", "kvfix/__init__.py", "kvfix/checkout.py")
    copied(tmp_path / "eval", "eval/__init__.py")
    copied(tmp_path / "eval/stats", "eval/stats/__init__.py", "eval/stats/bootstrap.py")
    return tmp_path


def test_a_bare_checkout_knows_kvfix_eval(bare: Path) -> None:
    assert found(bare) == [bare / "kvfix", bare / "eval"]


def test_a_wheel_takes_its_own_whatever_lies_beside(bare: Path) -> None:
    shutil.copytree(bare / "eval", bare / "kvfix/eval")
    assert found(bare) == [bare / "kvfix", bare / "kvfix/eval"]


def test_the_table_is_that_of_pyproject() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["package-dir"] == {"kvfix": "kvfix", **checkout.BESIDE}
