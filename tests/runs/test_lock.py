"""One writer a folder: refused at once, free as soon as the writer is gone, however it went."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvfix.runs.lock import LOCK, InUse, locked

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from kvfix.runs.lock import InUse, locked

def say(word):
    print(word, flush=True)

def hold(folder):
    with locked(Path(folder), command="kvfix eval " + "--data x " * 100):
        say("held")
        time.sleep(100)

def fork(folder):
    with locked(Path(folder), command="kvfix eval"):
        forked, runs_now = os.pipe()
        child = os.fork()
        if not child:
            os.write(runs_now, b"x")
            time.sleep(100)
        os.read(forked, 1)  # on a busy machine the child may not have run yet
        runs = subprocess.Popen(["sleep", "100"], close_fds=False)
        say(f"held {child} {runs.pid}")
        time.sleep(100)

def race(folder):
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with locked(Path(folder), command="kvfix eval"):
            say("held")
            sys.stdin.readline()
    except InUse:
        say("refused")

globals()[sys.argv[1]](sys.argv[2])
"""


@contextmanager
def process(what: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on a folder; killed at the end."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, what, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield other
    finally:
        other.kill()
        other.communicate()


def heard(other: subprocess.Popen[str]) -> list[str]:
    assert other.stdout is not None
    return other.stdout.readline().split()


def gone(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "eval"
    with process("hold", folder) as other:
        assert heard(other) == ["held"]
        with pytest.raises(InUse) as error, locked(folder, command="kvfix eval"):
            raise AssertionError("never inside")
    text = str(error.value)
    assert text.startswith(f"{folder} is being written by pid {other.pid} on ")
    assert "since 20" in text and text.endswith("...); wait for it, or choose another --out")
    assert len(text) < 300 + len(str(folder))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_writer_holds_nothing(end: signal.Signals, tmp_path: Path) -> None:
    with process("hold", tmp_path) as other:
        heard(other)
        other.send_signal(end)
        other.wait()
    with locked(tmp_path, command="the next one"):
        assert json.loads((tmp_path / LOCK).read_text())["command"] == "the next one"
    assert list(tmp_path.iterdir()) == []


def test_children_of_a_killed_writer_hold_nothing(tmp_path: Path) -> None:
    with process("fork", tmp_path) as other:
        _, forked, started = heard(other)
        try:
            with pytest.raises(InUse), locked(tmp_path, command=""):
                pass
            other.kill()
            other.wait()
            with locked(tmp_path, command=""):
                os.kill(int(forked), 0)  # both outlive their parent
                os.kill(int(started), 0)
        finally:
            gone(int(forked))
            gone(int(started))


def test_a_child_unwinding_through_the_block_leaves_the_parents_lock(tmp_path: Path) -> None:
    child = -1
    with locked(tmp_path, command="parent"):
        if not (child := os.fork()):
            inner = locked(tmp_path / "x", command="child")  # may get the same descriptor
            inner.__enter__()
            inner.__exit__(None, None, None)
        else:
            os.waitpid(child, 0)
            with pytest.raises(InUse), locked(tmp_path, command="second"):
                pass
    if not child:
        os._exit(0)
    assert not (tmp_path / LOCK).exists()


def test_of_two_that_start_at_once_one_works(tmp_path: Path) -> None:
    with process("race", tmp_path / "run") as a, process("race", tmp_path / "run") as b:
        pair = (a, b)
        for other in pair:
            assert heard(other) == ["ready"]
        for other in pair:
            assert other.stdin is not None
            other.stdin.write("go\n")
            other.stdin.flush()
        assert sorted(word for other in pair for word in heard(other)) == ["held", "refused"]


@pytest.mark.parametrize("name", ["taken", "taken/run", "nowhere", "nowhere/run"])
def test_a_file_or_a_broken_link_in_the_way_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match=r"taken|nowhere"), locked(tmp_path / name, command="x"):
        pass


def test_a_folder_that_goes_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, calls = Path.mkdir, []

    def mkdir(self: Path, *args: object, **named: object) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        made(self, *args, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked(tmp_path / "run", command="x"):
        assert (tmp_path / "run" / LOCK).exists()
    assert len(calls) == 2


def test_many_in_turn_never_meet(tmp_path: Path) -> None:
    """The folder is made and removed all the time, so that every step of the lock is raced."""
    script = """
import os, random, sys, time
from pathlib import Path
from kvfix.runs.lock import InUse, locked
folder, inside, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with locked(folder, command="x"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another is inside
            time.sleep(random.random() / 2000)
            inside.unlink()
        done += 1
    except InUse:
        pass
print(done)
"""
    words = [sys.executable, "-c", script, str(tmp_path / "deep" / "run"), str(tmp_path / "in")]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [int(other.communicate()[0]) for other in others]
    assert all(other.returncode == 0 for other in others) and min(counts) > 0, counts


def test_a_folder_that_the_lock_made_goes_with_it_if_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such model"), locked(tmp_path / "a/b", command=""):
        raise ValueError("no such model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", command=""):
        pass
    with locked(tmp_path / "a/b", command=""):
        (tmp_path / "a/b/run.json").touch()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a",
        "a/b",
        "a/b/run.json",
        "mine",
    ]


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path, command="first"):
        with pytest.raises(InUse, match="first"), locked(tmp_path, command="second"):
            pass
        with locked(tmp_path / "other", command="third"):
            pass
    with locked(tmp_path, command="fourth"):
        pass


@pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"[]", b'{"pid": "x"}', b"\xff" * 10_000])
def test_what_the_file_says_decides_nothing(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(junk)
    with locked(tmp_path, command="mine"):
        (tmp_path / LOCK).write_bytes(junk)
        with pytest.raises(InUse, match="another process"), locked(tmp_path, command=""):
            pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), locked(tmp_path, command=""):
        pass
    assert "this file system has no locks (No locks available)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file", command=""):
        pass


def test_the_wait_is_none(tmp_path: Path) -> None:
    with locked(tmp_path, command=""):
        start = time.monotonic()
        with pytest.raises(InUse), locked(tmp_path, command=""):
            pass
        assert time.monotonic() - start < 30
