"""`kvfix eval --answer-with`: rows of answers that a server wrote, an adapter's too; refusals.

The server is a stand-in that speaks vLLM's command line and HTTP; no vLLM runs here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import adapter_folders
import pytest
from commands import Ended, call
from PIL import Image

from kvfix.data.units import Question
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.served import Served, written_answers

STAND_IN = Path(__file__).parent / "helpers" / "vllm_stand_in.py"
IN_LM = r".*language_model.*\.v_proj"


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("llava_onevision")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "lm"
    adapter_folders.make(model, folder, target_modules=IN_LM, r=12)
    return folder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log.jsonl"))
    return tmp_path / "log.jsonl"


@contextmanager
def stand_in(model: Path, **environment: str) -> Iterator[str]:
    """The address of a server of the model."""
    server = subprocess.Popen(
        [sys.executable, str(STAND_IN), "serve", str(model)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture
def url(model: Path, log: Path) -> Iterator[str]:
    """A server of the model that runs already."""
    with stand_in(model) as address:
        yield address


def evaluate(model: Path, out: Path, *words: str) -> Ended:
    return call("eval", "--model", model, "--limit", "9", "--out", out, *words)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples" / "mcq.jsonl").read_text().splitlines()]


def test_a_server_that_runs_writes_the_rows_of_any_run(
    model: Path, url: str, log: Path, tmp_path: Path
) -> None:
    ended = evaluate(model, tmp_path / "run", "--answer-with", url)
    assert ended.code == 0, ended.err
    got = rows(tmp_path / "run")
    assert len(got) == 9 and {row["letter"] for row in got} == {"A"}
    assert all(row["correct"] == (row["answer"] == "A") and row["text"] == "(A)" for row in got)
    assert all("logprobs" not in row or row["logprobs"] is None for row in got)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["complete"] and run["answered_by"] == "vllm 0.0-stand-in"
    assert {r["scoring"] for r in run["results"]} == {"generation"}
    [micro] = [r for r in run["results"] if r["metric"] == "accuracy_micro"]
    assert micro["value"] == pytest.approx(sum(row["correct"] for row in got) / 9)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    by_text = {row["question"]: row for row in got}
    assert len(asked) == 9 and len(by_text) >= 1
    for body in asked:
        *images, text = body["messages"]
        assert images and all(isinstance(size, list) for size in images)
        assert body["temperature"] == 0 and body["max_tokens"] == 32 and isinstance(text, str)
        assert body["repetition_penalty"] == 1
    again = evaluate(model, tmp_path / "run", "--answer-with", url)
    assert again.code == 0 and len(log.read_text().splitlines()) == 9  # nothing is asked twice


def test_a_server_that_dies_ends_the_run_which_another_goes_on_with(
    model: Path, log: Path, tmp_path: Path
) -> None:
    with stand_in(model, STAND_IN_ANSWERS="5") as dying:
        ended = evaluate(model, tmp_path / "run", "--answer-with", dying, "--batch", "2")
    assert ended.code == 1 and "the same command goes on" in ended.error, ended.err
    assert len(rows(tmp_path / "run")) < 9
    with stand_in(model) as url:
        ended = evaluate(model, tmp_path / "run", "--answer-with", url, "--batch", "2")
    assert ended.code == 0, ended.err
    got = rows(tmp_path / "run")
    assert len(got) == 9 and {row["kind"] for row in got} == {"answer"}


def test_a_server_here_is_not_asked_through_a_proxy(
    model: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert evaluate(model, tmp_path / "run", "--answer-with", url).code == 0


def test_a_server_is_started_with_the_adapter_and_ended(
    model: Path, adapter: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho $$ >> "$STAND_IN_LOG.pid"\nexec {sys.executable} {STAND_IN} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    ended = evaluate(model, tmp_path / "run", "--adapter", str(adapter), "--answer-with", "vllm")
    assert ended.code == 0, ended.err
    assert {row["letter"] for row in rows(tmp_path / "run")} == {"B"}  # what the adapter says
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["model"]["adapter"] == str(adapter) and run["model"]["adapter_sha256"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(f"{log}.pid").read_text()), 0)


def test_what_cannot_be_served_is_refused_in_one_line(
    model: Path, adapter: Path, url: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = tmp_path / "tower"
    adapter_folders.make(model, tower, target_modules=r".*vision_tower.*\.v_proj")
    uneven = tmp_path / "uneven"
    adapter_folders.make(model, uneven, target_modules=IN_LM, alpha_pattern={"v_proj": 99})
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, said in (
        (["--answer-with", "vllm"], "pip install 'kvfix[vllm]'"),
        (["--answer-with", url, "--task", "cosegmentation"], "gives no features"),
        (["--answer-with", url, "--adapter", str(tower)], "kvfix merge"),
        (["--answer-with", url, "--adapter", str(adapter)], "--lora-modules"),
        (["--answer-with", url, "--adapter", str(uneven)], "alpha_pattern"),
        (["--answer-with", url, "--processor", str(model)], "vLLM has its own"),
        (["--answer-with", "http://127.0.0.1:9"], "expected a server of vLLM"),
        (["--answer-with", "elsewhere"], "http://HOST:PORT"),
    ):
        ended = evaluate(model, tmp_path / "refused", *words)
        assert ended.code == 1 and said in " ".join(ended.err.split()), ended.err
        assert "Traceback" not in ended.err


def test_a_living_server_that_breaks_off_fails_at_that_question_alone() -> None:
    class BreaksOff(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.close_connection = True

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        served = Served(f"http://127.0.0.1:{server.server_port}", "m", "0")
        question = Question(
            "q", "q", "Art_Style", (Image.new("RGB", (8, 8)),), "What?", ("a", "b"), 0
        )
        with pytest.raises(ValueError, match="expected an answer, found"):
            written_answers(served, [question], McqProtocol())
        server.shutdown()
