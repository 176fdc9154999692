"""Files and folders are whole or absent, whatever stops the one who writes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvfix.runs.atomic import (
    MANIFEST,
    atomic_file,
    atomic_folder,
    partial_of,
    remove_leftovers,
    torn,
    write_text,
)
from kvfix.runs.lock import LOCK, InUse

WRITER = """
import os, signal, sys, time
from pathlib import Path
import kvfix.runs.atomic as atomic

target, stop = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def dies(function):
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted

for owner, name in [(os, "fsync"), (os, "open"), (Path, "open"), (Path, "rename"),
                    (Path, "unlink"), (Path, "replace"), (Path, "rmdir"), (os, "close")]:
    setattr(owner, name, dies(getattr(owner, name)))
with atomic.atomic_folder(target, command="writer", manifest=True) as folder:
    (folder / "deep").mkdir()
    with (folder / "weights").open("wb") as stream:
        stream.write(b"w" * 1000)
    with (folder / "deep" / "state").open("wb") as stream:
        stream.write(b"s" * 10)
print(calls)
"""


def fill(folder: Path, text: str = "abc") -> None:
    (folder / "deep").mkdir()
    (folder / "weights").write_text(text)
    (folder / "deep" / "state").write_text("state")


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(there: bool, tmp_path: Path) -> None:
    target = tmp_path / "runs" / "merged"
    if there:
        target.mkdir(parents=True, mode=0o750)
    with atomic_folder(target, command="", manifest=True) as folder:
        fill(folder)
        assert folder == partial_of(target) and folder.parent == target.parent
        assert names(target) == []
    assert names(tmp_path / "runs") == [
        "merged",
        "merged/deep",
        "merged/deep/state",
        f"merged/{MANIFEST}",
        "merged/weights",
    ]
    assert torn(target) is None
    files = json.loads((target / MANIFEST).read_text())["files"]
    assert list(files) == ["deep/state", "weights"] and files["weights"]["bytes"] == 3
    if there:
        assert target.stat().st_mode & 0o777 == 0o750


def test_a_manifest_is_written_where_asked_for(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a", command="") as folder:
        fill(folder)
    assert names(tmp_path / "a") == ["deep", "deep/state", "weights"]
    assert torn(tmp_path / "a") == f"{MANIFEST} is missing"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_nothing(there: bool, error: BaseException, tmp_path: Path) -> None:
    if there:
        (tmp_path / "a").mkdir()
    with pytest.raises(type(error)), atomic_folder(tmp_path / "a", command="") as folder:
        fill(folder)
        raise error
    assert names(tmp_path) == (["a"] if there else [])


def test_killed_at_any_step_the_target_is_whole_or_absent(tmp_path: Path) -> None:
    step, ended = 0, False
    seen = set()
    while not ended:
        step += 1
        target = tmp_path / str(step) / "checkpoint-7"
        done = subprocess.run(
            [sys.executable, "-c", WRITER, str(target), str(step)], capture_output=True, text=True
        )
        ended = done.returncode == 0
        assert ended or done.returncode == -signal.SIGKILL, done.stderr
        seen.add(target.exists())
        if target.exists():
            assert torn(target) is None, step
            continue
        with atomic_folder(target, command="next", manifest=True) as folder:
            assert names(folder) == [LOCK], step
            fill(folder)
        assert torn(target) is None and names(target.parent)[0] == "checkpoint-7"
        assert not partial_of(target).exists()
    assert step > 10 and seen == {True, False}


def test_the_second_writer_of_a_target_is_refused(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a", command="kvfix merge") as folder:
        fill(folder)
        with pytest.raises(InUse, match="kvfix merge"), atomic_folder(tmp_path / "a", command=""):
            pass
        with atomic_folder(tmp_path / "b", command="") as other:
            fill(other)
        assert names(folder) == [LOCK, "deep", "deep/state", "weights"]
    assert names(tmp_path / "a") == names(tmp_path / "b") == ["deep", "deep/state", "weights"]


def test_files_in_the_target_are_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "thesis.tex").write_text("years")
    with (
        pytest.raises(ValueError, match="expected a new or empty folder, found files in it"),
        atomic_folder(target, command=""),
    ):
        pass
    (target / "thesis.tex").unlink()
    with (
        pytest.raises(ValueError, match="written there in the meantime"),
        atomic_folder(target, command="") as folder,
    ):
        fill(folder)
        (target / "thesis.tex").write_text("years")
    assert names(tmp_path) == ["thesis", "thesis/thesis.tex"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="new or empty"),
        atomic_folder(tmp_path / "file", command=""),
    ):
        pass


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "scratch").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "scratch")
    with atomic_folder(tmp_path / "out", command="") as folder:
        fill(folder)
        assert folder.parent == tmp_path / "disk"  # the same file system as what is replaced
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out" / "weights").exists()
    assert names(tmp_path / "disk")[0] == "scratch"


def test_a_folder_that_cannot_be_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (Path(), tmp_path / "here"):
        with pytest.raises(ValueError, match="current folder"), atomic_folder(name, command=""):
            pass
    monkeypatch.chdir("/")
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with (
        pytest.raises(ValueError, match="mount point"),
        atomic_folder(tmp_path / "here", command=""),
    ):
        pass
    assert names(tmp_path) == ["here"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "weights").unlink(), "weights is missing"),
        (lambda f: (f / "weights").write_text("ab"), "weights has 2 bytes instead of 3"),
        (lambda f: (f / "deep/state").write_text("stat\0"), "deep/state has changed"),
        (lambda f: shutil.rmtree(f / "deep"), "deep/state is missing"),
        (lambda f: (f / MANIFEST).unlink(), f"{MANIFEST} is missing"),
        (lambda f: (f / MANIFEST).write_text(""), f"{MANIFEST} cannot be read"),
        (lambda f: (f / MANIFEST).write_text('{"files": [1]}'), f"{MANIFEST} cannot be read"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\0"), f"{MANIFEST} cannot be read"),
        (lambda f: shutil.rmtree(f), f"{MANIFEST} is missing"),
    ],
)
def test_damage_to_a_whole_folder_is_named(damage, says: str, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a", command="", manifest=True) as folder:
        fill(folder)
    (tmp_path / "a" / "more").touch()  # what somebody adds later is no damage
    assert torn(tmp_path / "a") is None
    damage(tmp_path / "a")
    assert says in str(torn(tmp_path / "a"))


def test_leftovers_of_the_dead_go_and_the_living_stay(tmp_path: Path) -> None:
    for dead in ("checkpoint-1", "checkpoint-2"):
        partial_of(tmp_path / dead).mkdir()
        (partial_of(tmp_path / dead) / "weights").touch()
    (partial_of(tmp_path / "checkpoint-1") / LOCK).touch()
    with atomic_folder(tmp_path / "checkpoint-3", command="") as folder:
        fill(folder)
        found = remove_leftovers(tmp_path, command="")
        assert found == ["checkpoint-1", "checkpoint-2"]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_file_is_old_or_new(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    write_text(tmp_path / "a", "old é")
    with monkeypatch.context() as crashing:
        crashing.setattr(where, crash)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old é"
    assert names(tmp_path) == ["a"]
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "b") as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a"]
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]
