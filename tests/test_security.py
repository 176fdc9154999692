"""What SECURITY.md promises and no other file shows, and that each promise names its tests."""

from __future__ import annotations

import ast
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from commands import call
from places import ROOT

from kvfix.mlm.load import load_mlm

SOURCES = ("kvfix", "eval", "recipes", "benchmarks")
# Pictures that a recipe painted itself, in the folder that it writes.
OWN_PICKLES = ("recipes/nano/curriculum.py",)
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def promises() -> list[tuple[str, list[str]]]:
    """Each row of the table: the promise, and the tests that it names."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| **")]
    return [(row.split("**")[1], re.findall(r"`(tests/[\w/]+\.py::\w+)`", row)) for row in rows]


def test_every_promise_names_tests_that_exist() -> None:
    assert len(promises()) >= 14
    for promise, named in promises():
        assert named, promise
        for name in named:
            file, _, test = name.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in found, f"{promise}: {name} does not exist"
    assert set(re.findall(r"tests/[\w/]+\.py::\w+", PAGE)) == {
        n for _, names in promises() for n in names
    }


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    """Every Python file of the source."""
    files = (f for folder in SOURCES for f in (ROOT / folder).rglob("*.py"))
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the source whose function ends in `name`."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                yield file, node


def test_no_line_of_the_source_turns_remote_code_on() -> None:
    found = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                found.append((file, ast.unparse(node.value)))
            if isinstance(node, ast.Dict):
                keys = [None if k is None else ast.unparse(k) for k in node.keys]
                if "'trust_remote_code'" in keys:
                    at = keys.index("'trust_remote_code'")
                    found.append((file, ast.unparse(node.values[at])))
    assert len(found) >= 5 and {value for _, value in found} == {"False"}, found


def test_no_line_of_the_source_unpickles_freely() -> None:
    found = list(calls("load"))
    of_torch = [(f, c) for f, c in found if ast.unparse(c.func) == "torch.load"]
    assert of_torch
    for file, call_ in of_torch:
        safe = {k.arg: ast.unparse(k.value) for k in call_.keywords}.get("weights_only")
        if str(file.relative_to(ROOT)) not in OWN_PICKLES:
            assert safe == "True", f"{file}:{call_.lineno}"
    for name in ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "yaml.load"):
        assert not any(ast.unparse(c.func) == name for _, c in found), name
    assert not any(
        k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
        for _, c in found
        for k in c.keywords
    )
    assert not list(calls("unsafe_load")) and not list(calls("full_load"))


def test_no_line_of_the_source_unpacks_archives() -> None:
    for name in ("extractall", "unpack_archive", "extract", "TarFile", "gettarinfo"):
        found = [
            (file, call_)
            for file, call_ in calls(name)
            if ast.unparse(call_.func) != "extract"  # kvfix's own: a letter out of an answer
        ]
        assert not found, name


AUTO = (
    *("AutoConfig", "AutoModel", "AutoModelForImageTextToText"),
    *("AutoProcessor", "AutoImageProcessor"),
)


def planted(folder: Path, canary: Path) -> None:
    """A Python file that tells on itself, named wherever transformers looks for code."""
    code = (
        f"open({str(canary)!r}, 'a').close()\nclass Evil: pass\nEvilConfig = EvilTokenizer = Evil\n"
    )
    for name in ("evil.py", "modeling_evil.py", "setup.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    auto = dict.fromkeys((*AUTO, "AutoTokenizer"), "evil.Evil")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        file = folder / name
        content = json.loads(file.read_text()) if file.exists() else {}
        tokenizer = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]} if "tokenizer" in name else {}
        file.write_text(json.dumps(content | {"auto_map": auto | tokenizer}))


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "llava_next", "llava"])
def test_code_beside_a_model_never_runs(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, canary = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(checkpoint(name), folder)
    planted(folder, canary)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(folder)  # where an import by name would find it
    try:
        load_mlm(str(folder))
    except ValueError as error:  # refused is as good as left alone
        assert "Evil" not in type(error).__name__
    if name == "llava_onevision":
        for words in (
            ("plan",),
            ("eval", "--limit", "1", "--task", "mcq", "--out", tmp_path / "r"),
        ):
            assert "Traceback" not in call(*words, "--model", folder).err
    assert not canary.exists()


@pytest.mark.parametrize("dataset", ["blink", "davis2017", "spair", "refcoco", "msrc"])
def test_archives_are_no_data(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.txt").write_text("inside")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "in" / "x.txt", "../../escaped.txt")
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "in" / "x.txt", "../../escaped.txt")
    before = sorted(tmp_path.rglob("*"))
    for name in ("data.zip", "data.tar.gz", "."):
        ended = call("data", "check", f"{dataset}={tmp_path / name}")
        assert ended.code in (1, 2), ended
    assert sorted(tmp_path.rglob("*")) == before
