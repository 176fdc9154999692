"""A command that starts further processes ends as it would alone, whatever befalls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kill_and_resume
import pytest
import typer
from commands import ENV, KVFIX, launch
from safetensors.torch import save_file
from torch import zeros

from kvfix.commands import processes
from kvfix.commands.processes import MOST, how_many

ASKED = ("--task", "mcq", "--task", "semantic_correspondence", "--site", "value", "--limit", "12")


def _words(model: Path, out: Path, n: int, *more: str) -> list[str]:
    return ["eval", "--model", str(model), *ASKED, "--out", str(out), "--processes", str(n), *more]


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    ended = launch(*_words(checkpoint("llava_onevision"), out, 1))
    assert ended.code == 0, ended.err
    return out


def test_two_processes_end_with_what_one_writes(
    checkpoint: Callable[[str], Path], alone: Path, tmp_path: Path
) -> None:
    ended = launch(*_words(checkpoint("llava_onevision"), tmp_path / "two", 2, "--json"))
    assert ended.code == 0, ended.err
    shown = json.loads(ended.out)  # once
    assert shown["starts"][0]["host"]["ranks"] == 2
    assert "answering 12 of 12" in ended.err and ended.err.count("Report: ") == 1
    assert kill_and_resume.result("eval", tmp_path / "two") == kill_and_resume.result("eval", alone)


def _others(of: subprocess.Popen) -> list[int]:
    """Processes that a command has started to share its work."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            parent = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1]
            words = Path("/proc", name, "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if parent == str(of.pid) and "alone=False" in words:
            found.append(int(name))
    return found


def _ends(pid: int) -> bool:
    """Whether a process ends within seconds, if it has not ended yet."""
    for _ in range(100):
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # its parent has gone, and nobody has asked for it
            return True
        time.sleep(0.1)
    return False


def _has_begun(out: Path) -> bool:
    """Whether units are being measured."""
    return bool(list(out.glob("samples/*.jsonl")))


def _started(words: list[str], *, until: Callable[[], bool]) -> subprocess.Popen:
    """A command in a session of its own, once it has started another process and `until` holds."""
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    command = subprocess.Popen(
        [KVFIX, *words],
        **pipes,
        env=ENV,
        start_new_session=True,
        # As on a terminal: whatever runs in a shell's background ignores it, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and command.poll() is None:
        if _others(command) and until():
            break
        time.sleep(0.02)
    return command


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("meanwhile", [False, True], ids=["before they meet", "at work"])
def test_nothing_outlives_the_command(
    checkpoint: Callable[[str], Path], tmp_path: Path, meanwhile: bool
) -> None:
    out = tmp_path / "out"
    words = _words(checkpoint("llava_onevision"), out, 2)
    command = _started(words, until=lambda: not meanwhile or _has_begun(out))
    [other] = _others(command)
    command.kill()
    _, said = command.communicate(timeout=60)  # the other has written here, too, until it ended
    assert "Traceback" not in said and _ends(other)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_ends_all(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = _words(checkpoint("llava_onevision"), out, 2)
    command = _started(words, until=lambda: _has_begun(out))
    [other] = _others(command)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130 and said.count("interrupted") == 1, said
    assert "Traceback" not in said and _ends(other)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("meanwhile", [False, True], ids=["before they meet", "at work"])
def test_a_process_that_dies_ends_the_command_and_the_next_goes_on(
    checkpoint: Callable[[str], Path], alone: Path, tmp_path: Path, meanwhile: bool
) -> None:
    out = tmp_path / "torn"
    words = _words(checkpoint("llava_onevision"), out, 2)
    command = _started(words, until=lambda: not meanwhile or _has_begun(out))
    [other] = _others(command)
    os.kill(other, signal.SIGKILL)
    _, said = command.communicate(timeout=120)
    assert command.returncode == 1, said
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "another has died" in error if meanwhile else "ended with code -9" in error
    assert "Traceback" not in said
    ended = launch(*words)
    assert ended.code == 0, ended.err
    assert kill_and_resume.result("eval", out) == kill_and_resume.result("eval", alone)


def test_a_script_that_calls_the_command_is_not_run_again(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    words = _words(checkpoint("llava_onevision"), tmp_path / "out", 2)
    script = (
        f"import sys; sys.argv[1:] = {words!r}; print('once')\nfrom kvfix.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "once\n", done.stderr


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    ended = launch(*_words(Path("/nowhere"), tmp_path / "out", 2))
    assert ended.code == 1 and "/nowhere" in ended.error


def test_a_server_answers_one_process() -> None:
    ended = launch("eval", "--answer-with", "vllm", "--processes", 2)
    assert ended.code == 2 and "without --answer-with" in ended.err


def test_no_further_processes_below_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert how_many(None, None, limit=None, device=None) == 1
    with pytest.raises(typer.BadParameter, match="found 3 processes"):
        how_many(2, None, limit=None, device=None)


def test_a_small_model_on_a_cpu_takes_two_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "_GPU", ())
    monkeypatch.setattr(processes, "_cores", lambda: 3)
    monkeypatch.setattr(sys, "platform", "linux")

    def unasked(model: Path | None = None, limit: int | None = None, device: str | None = None):
        return how_many(None, None if model is None else str(model), limit=limit, device=device)

    assert unasked() == unasked(device="cpu") == MOST == 2
    assert unasked(limit=8) == unasked(device="cuda:0") == unasked(Path("some/hub-id")) == 1
    assert how_many(2, "some/hub-id", limit=8, device="cuda:0") == 2
    save_file({"x": zeros(2**24)}, tmp_path / "model.safetensors")  # 64 MiB and a header
    assert unasked(tmp_path) == 1
    save_file({"x": zeros(2**10)}, tmp_path / "model.safetensors")
    assert unasked(tmp_path) == MOST
    assert how_many(None, None, encoder="some/encoder") == 1
    monkeypatch.setattr(processes, "_cores", lambda: 1)
    assert unasked() == 1
    monkeypatch.setattr(processes, "_cores", lambda: 100)
    assert unasked() == MOST
    monkeypatch.setattr(processes, "_GPU", (str(tmp_path),))  # there is one
    assert unasked() == 1 and unasked(device="cpu") == MOST
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert unasked(device="cpu") == 1


@pytest.mark.parametrize(
    ("said", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 7), ("?", 7)]
)
def test_a_container_has_the_cores_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, cores: int
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    monkeypatch.setattr(processes, "_QUOTA", tmp_path / "cpu.max")
    assert processes._cores() == 7  # no such file
    (tmp_path / "cpu.max").write_text(f"{said}\n")
    assert processes._cores() == cores
