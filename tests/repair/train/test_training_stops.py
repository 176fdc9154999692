"""How a training stops: numbers that are not finite, Ctrl-C and SIGTERM, workers that die."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from talks import write_talks
from trainings import at_step, names, recipe, record, train, trained

from kvfix.config import load_config
from kvfix.repair import module
from kvfix.repair.lora import LoraOptions, Rates
from kvfix.repair.terms.losses import Losses
from kvfix.repair.terms.mean import Mean
from kvfix.repair.train import launch
from kvfix.repair.train.guard import Diverged, Guard
from kvfix.repair.train.launch import typed
from kvfix.repair.train.recipe import Recipe
from kvfix.repair.train.saves import newest_whole
from kvfix.repair.train.session import command_to_go_on
from kvfix.runs.lock import LOCK
from kvfix.terminal import Interrupted

FOLDER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("data"), 16)


@pytest.fixture
def made(checkpoint, data, tmp_path) -> Recipe:
    return recipe(checkpoint("llava"), data, tmp_path / "run", save_every=1)


def assert_all_finite(out: Path) -> None:
    """Whatever of weights there is; and no adapter of a run that failed."""
    files = list(out.rglob("*.safetensors"))
    assert not (out / FOLDER).exists()
    for file in files:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def failed(made: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        train(made)
    said = str(caught.value)
    assert "\n" not in said and record(Path(made.out))["starts"][-1]["ended"].startswith("failed")
    assert not record(Path(made.out))["complete"]
    return said


# --- what is not finite ---------------------------------------------------------------------------


def test_a_divergence_stops_at_its_step_and_names_the_last_good_checkpoint(made, capsys) -> None:
    out = Path(made.out)
    wild = replace(made, steps=40, keep=2, warmup=0, schedule="constant", rates=Rates(lm=1e6))
    said = failed(wild)
    assert "found NaN or infinity in " in said and "at learning rates of lm 1e+06" in said
    last = newest_whole(out).last
    assert last is not None and f"the last good checkpoint is {last} (loss " in said
    step = int(said.split(":")[0].removeprefix("step "))
    assert int(last.name.removeprefix("checkpoint-")) == step - 1
    assert_all_finite(out)


def test_without_a_checkpoint_the_advice_is_to_begin_anew(made) -> None:
    wild = replace(made, save_every=0, warmup=0, rates=Rates(lm=1e6))
    said = failed(wild)
    assert "no checkpoint had been written; begin anew with lower rates: python recipes" in said
    train(replace(made, steps=1))  # in the same folder


def plant(monkeypatch: Any, at: int, number: float) -> None:
    """The loss `kl` is this number in one optimizer step, 1-based."""
    means_of = module.Repair._means_of

    def planted(self: Any, batch: Any, step: Any, number_: int) -> list[Mean]:
        own, *others = means_of(self, batch, step, number_)
        if number_ + 1 == at:
            others = [Mean(mean.total * number, mean.weight) for mean in others]
        return [own, *others]

    monkeypatch.setattr(module.Repair, "_means_of", planted)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_the_term_that_is_not_finite_is_named_with_its_step(number, at, made, monkeypatch) -> None:
    losses = replace(Losses(), kl=replace(Losses().kl, weight=0.5))
    lora = LoraOptions(rank=2)
    plant(monkeypatch, at, number)
    said = failed(replace(made, losses=losses, lora=lora))
    assert said.startswith(f"step {at}:") and "in the loss `kl`" in said and "`lm`" not in said
    assert names(Path(made.out)) == [f"checkpoint-{n}" for n in range(1, at)][-9:]
    assert_all_finite(Path(made.out))
    log = (Path(made.out) / "log.jsonl").read_text()
    assert "NaN" not in log and "Infinity" not in log
    lines = {line["step"]: line for line in map(json.loads, log.splitlines())}
    assert lines[at]["loss_kl"] is None and lines[at]["loss"] is None


def test_what_is_advised_after_a_divergence_can_be_done(made, monkeypatch) -> None:
    losses = replace(Losses(), kl=replace(Losses().kl, weight=0.5))
    with monkeypatch.context() as patch:
        plant(patch, 3, math.nan)
        said = failed(replace(made, losses=losses))
    kept = Path(made.out) / "checkpoint-2"
    assert f"the last good checkpoint is {kept} (loss " in said
    words = shlex.split(said.partition("with lower rates: ")[2])[2:]
    advised = load_config(Recipe, None, words)
    assert advised.rates.lm == pytest.approx(made.rates.lm / 10)
    assert (advised.out, advised.adapter) == (f"{made.out}-lower", str(kept))
    lower = {"rates": advised.rates, "out": advised.out, "adapter": advised.adapter}
    out = train(replace(made, steps=2, losses=losses, **lower))
    assert record(out)["fingerprint"]["adapter.sha256"] and load_file(out / FOLDER)


@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_a_gradient_or_a_weight_alone_is_enough(what, made, monkeypatch) -> None:
    found: list[torch.nn.Parameter] = []
    init = module.Repair.__init__

    def remembering(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        found[:] = [p for p in self.parameters() if p.requires_grad]

    monkeypatch.setattr(module.Repair, "__init__", remembering)

    def spoil() -> None:
        if what == "weight":
            found[-1].data[0, 0] = math.nan
        else:
            found[-1].register_hook(lambda grad: grad * math.inf)

    at_step(monkeypatch, 3, spoil)
    said = failed(made)
    # The log is written before the checkpoint of its step.
    assert said.startswith("step 3:" if what == "weight" else "step 4:")
    assert ("in a trained weight" if what == "weight" else "the gradient's norm") in said
    last = 2 if what == "weight" else 3
    assert names(Path(made.out)) == [f"checkpoint-{n}" for n in range(1, last + 1)]
    assert_all_finite(Path(made.out))


def test_the_guard_reads_what_was_sent_and_no_more(monkeypatch) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(0))]
    guard = Guard(("lm", "kl"), weights)
    cpu = torch.device("cpu")
    assert guard.read() == (False, False)
    guard.begin()
    guard.add(torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    guard.norm(3.0)
    guard.end(7, {"lm": 0.5})
    flags = guard.flags(cpu, stop=True)
    assert flags.tolist() == [0, 0, 0, 0, 1, 0]
    guard.send(flags)
    assert guard.read() == (True, False) and guard.read() == (False, False)
    guard.begin()
    for total in (math.inf, -math.inf):  # as of two micro-batches
        guard.add(torch.tensor([[1.0, 1.0], [total, 1.0]]))
    guard.norm(torch.tensor(math.nan))
    guard.end(8, {"lm": 0.25})
    guard.send(guard.flags(cpu, save=True))
    guard.begin()
    guard.end(9, {"lm": 0.125})
    with pytest.raises(Diverged, match=r"^step 8: .* in the loss `kl` and the gradient's norm, .*"):
        guard.read()
    weights[0].data[1] = math.inf
    assert guard.flags(cpu).tolist() == [0, 0, 0, 1, 0, 0]
    weights[0].data[1] = 1.0
    weights[1].ds_tensor, weights[1].ds_numel = torch.tensor([1.0, 1.0, math.nan]), 5
    for rank, found in ((0, 1), (1, 0)):  # at ZeRO-3: the third number of rank 1 is no weight
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert guard.flags(cpu).tolist() == [0, 0, 0, found, 0, 0]


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, made, monkeypatch, capfd) -> None:
    out, handlers = Path(made.out), [signal.getsignal(n) for n in (2, 15)]
    quiet = replace(made, save_every=0)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as caught:
            train(quiet)
    assert caught.value.code == code
    assert names(out) == ["checkpoint-4"] and not (out / FOLDER).exists()
    said = " ".join(capfd.readouterr().err.split())
    again = "python recipes/train_surfacing.py resume=true"
    assert (
        f"stopped after step 4 of 6; {out / 'checkpoint-4'} holds it; go on with: {again}" in said
    )
    assert [signal.getsignal(n) for n in (2, 15)] == handlers and not (out / LOCK).exists()
    assert record(out)["starts"][-1]["ended"] == "stopped after step 4"
    train(replace(quiet, resume=True))
    whole = train(replace(quiet, out=f"{out}-whole"))
    assert trained(out) == trained(whole)


def test_stop_at_is_a_stop_without_a_signal(made, capsys) -> None:
    out = train(replace(made, save_every=0, stop_at=2))
    assert names(out) == ["checkpoint-2"] and not (out / FOLDER).exists()
    assert "stopped after step 2 of 6" in capsys.readouterr().err
    train(replace(made, save_every=0, resume=True))
    assert record(out)["complete"]


def start(made: Recipe, *more: str) -> subprocess.Popen[str]:
    """The real command, in a group of its own."""
    words = [sys.executable, str(ROOT / "recipes" / "train_surfacing.py"), f"model={made.model}"]
    words += [f"data={made.data}", f"out={made.out}", "batch=4", "log_every=1", "threads=1"]
    off = [f"losses.{n}.weight=0" for n in ("evidence", "distil", "mask", "text_value")]
    off += ["losses.correspondence.weight=0", "losses.kl.weight=0", "lora.rank=2"]
    return subprocess.Popen(
        [*words, *off, *more], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if (log := out / "log.jsonl").exists() and f'"step": {step}}}' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.slow
def test_the_commands_exit_codes_are_those_of_the_signals(made) -> None:
    out = Path(made.out)
    process = start(made, "steps=100000", "workers=1")
    wait_for_step(out, 3, process)
    os.killpg(process.pid, signal.SIGTERM)  # as a batch system does
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said[-2000:]
    assert "Traceback" not in said and "go on with: python" in said and "resume=true" in said
    [kept] = names(out)
    process = start(made, "steps=100000", "resume=true")
    wait_for_step(out, int(kept.removeprefix("checkpoint-")) + 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # two at once, before it can act on the first
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert newest_whole(out).last is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_whole_repair_waits_for_its_training_to_save(number, monkeypatch, tmp_path) -> None:
    saved = tmp_path / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        f"def save(number, frame): time.sleep(0.5); pathlib.Path({str(saved)!r}).touch(); "
        "sys.exit(128 + number)\n"
        "signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )
    popen = subprocess.Popen

    def started(words: list[str]) -> subprocess.Popen[bytes]:
        process = popen(words)

        def ask() -> None:
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            if number == signal.SIGINT:  # a terminal reaches both
                os.kill(process.pid, number)
            os.kill(os.getpid(), number)

        threading.Thread(target=ask).start()
        return process

    monkeypatch.setattr(launch.subprocess, "Popen", started)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="the same command goes on") as caught:
        launch.run_to_its_end([sys.executable, "-c", code], launched=False)
    assert caught.value.code == 128 + number and saved.exists()
    assert signal.getsignal(number) == before


# --- workers --------------------------------------------------------------------------------------


def test_a_worker_that_dies_ends_in_one_line_and_what_is_saved_stays(made, monkeypatch) -> None:
    def kill() -> None:
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch:
        at_step(patch, 3, kill)
        said = failed(replace(made, workers=1, steps=60))
    assert "a process that prepares batches died (" in said and "fewer workers" in said
    last = newest_whole(Path(made.out)).last
    assert last is not None and f"the last checkpoint is {last}; go on with: python" in said
    train(replace(made, workers=0, steps=60, stop_at=9, resume=True))


# --- what was typed -------------------------------------------------------------------------------


def test_the_command_to_go_on_is_what_was_typed_with_the_change_at_its_end() -> None:
    argv = ["recipes/train_surfacing.py", "--local_rank=1", "out=a b", "steps=9", "stop_at=3"]
    assert typed(argv, {}) == ["python", *argv[:1], *argv[2:]]
    launched = {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    assert typed(argv, launched)[:3] == ["deepspeed", "--num_accelerators", "2"]
    assert typed(argv, {**launched, "TORCHELASTIC_RUN_ID": "x"})[0] == "torchrun"
    again = command_to_go_on(["python", *argv[:1], "out=a b", "resume=false"], resume="true")
    assert again == "python recipes/train_surfacing.py 'out=a b' resume=true"
