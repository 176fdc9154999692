"""`kvfix eval --answer-with vllm`: written answers by vLLM, as the rows of any other run.

A server is started for the run, or one that runs already is asked (`--answer-with
http://HOST:PORT`). No weights are loaded here: kvfix reads config, processor and adapter, so that
the run is known by the same hashes. Probes, readouts and options' log-probabilities need the
features and logits that a server does not give; only multiple-choice questions are asked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kvfix import adapters
from kvfix.checkpoint import folder as checkpoint
from kvfix.data.catalog import load_units
from kvfix.data.units import MCQ
from kvfix.eval.mcq.pictures import draw_questions
from kvfix.eval.mcq.run import answer_results, run_answers
from kvfix.eval.mcq.served import Served, find_served, healthy, written_answers
from kvfix.evaluate import Options
from kvfix.launchers import free_port
from kvfix.mlm.families import family_of
from kvfix.mlm.load import Mlm
from kvfix.mlm.processor import load_processor
from kvfix.report.html import write_report
from kvfix.runs.folder import Outcome, claimed
from kvfix.runs.recorder import once
from kvfix.session import Watch, begin, peak_memory_mib
from kvfix.shipped import nano_dir

VLLM = "vllm"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
MOST_IMAGES = 4  # of a question
PATIENCE = 1800  # seconds until a server has loaded its model
OWN = ("quant", "processor", "device", "attn")  # what a server decides for itself
UNREAD = ("use_dora", "modules_to_save", "bias", "lora_bias", "alpha_pattern", "rank_pattern")
NOTHING: tuple[Any, ...] = (None, False, "none", [], {})  # of a LoRA setting that asks for no more


def evaluate_served(options: Options, *, command: str, watch: Watch, where: str) -> Outcome:
    """Ask every multiple-choice question of the data; resumes like any run.

    Args:
        options: of `kvfix eval`.
        command: as it was typed.
        watch: told how far it is.
        where: "vllm" to start a server, or the address of one.

    Raises:
        ValueError: options, data or adapter that vLLM cannot serve, or a server that fails.
        ConnectionError: it no longer answers.
        FileNotFoundError: a model or data folder that is not there.
    """
    if options.tasks and set(options.tasks) != {MCQ}:
        raise ValueError(
            f"--answer-with {where}: expected --task {MCQ} alone, found "
            f"{', '.join(options.tasks)}; a server writes answers and gives no features"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--answer-with {where}: expected one process, found several ranks")
    for name in OWN:
        if (found := getattr(options, name)) != getattr(Options, name):
            raise ValueError(f"--{name} {found}: expected none, vLLM has its own")
    start = time.monotonic()
    with claimed(options.out, command=command):
        asked = load_units(options.data, tasks=(MCQ,), limit=options.limit, questions=True)
        mlm = _unloaded(options)
        with _server(options, mlm, where, watch) as served:
            by_whom = f"{VLLM} {served.version}"
            folder = begin(
                options,
                mlm,
                asked,
                kind="eval",
                command=command,
                moves={"attn": by_whom, "device": "served"},
                record={"answered_by": by_whom, "mcq": asdict(options.mcq)},
                host={},
            )
            assert folder is not None  # the only process is the first

            def by(questions: Any) -> Any:
                return written_answers(served, questions, options.mcq)

            with watch.phase("answering", sum(map(len, asked))) as tick:
                runs = [
                    run_answers(u, mlm, options.mcq, options.out, tick=tick, by=by) for u in asked
                ]
        for units in asked:
            draw_questions(units, options.out)
        record = folder.save(
            seconds=time.monotonic() - start,
            complete=True,
            results=[r for run in runs for r in answer_results(run, seed=options.seed)],
            findings=[],
            left_out=once([e for run in runs for e in run.left_out]),
            peak_memory_mib=peak_memory_mib(),
        )
        with watch.phase("writing the report"):
            report = write_report(folder.folder)
    return Outcome(record, report, any(run.too_many_left_out for run in runs))


def _unloaded(options: Options) -> Mlm:
    """The model without its weights: what names it and hashes it."""
    root = options.model or str(nano_dir())
    weights = checkpoint.find(root, weights=True)
    family = family_of(weights.config.get("model_type"), where=str(weights.folder / "config.json"))
    config = checkpoint.load_config(weights.folder)
    adapter = None if options.adapter is None else adapters.find(options.adapter)
    if adapter is not None:
        adapter = adapters.check_base(adapter, weights, name=root, force=options.force_adapter)
        _check_adapter(adapter, family)
    named = config.dtype if options.dtype in ("auto", "saved") else options.dtype
    dtype = named if isinstance(named, torch.dtype) else getattr(torch, str(named or "float32"))
    stub = SimpleNamespace(config=config, device=torch.device("cpu"))
    processor = load_processor(weights.folder, config, family)
    return Mlm(root, stub, processor, family, weights, adapter, dtype)


def _check_adapter(adapter: adapters.Adapter, family: Any) -> None:
    """Refuse what vLLM would leave out silently: it puts LoRA on the language model alone."""
    outside = [part.rpartition(".")[2] for part in (family.vision, family.projector)]
    strange = [n for n in adapter.tensors.shapes if any(part in n.split(".") for part in outside)]
    settings = adapter.settings
    more = [k for k in UNREAD if settings.get(k) not in NOTHING]
    if strange or more or adapter.beside:
        found = strange[0] if strange else more[0] if more else adapter.beside[0].name
        raise ValueError(
            f"{adapter.folder}: expected LoRA on the language model alone, found {found}, which "
            "vLLM does not serve; merge it first: kvfix merge, then --model with what that writes"
        )


@contextmanager
def _server(options: Options, mlm: Mlm, where: str, watch: Watch) -> Iterator[Served]:
    root = mlm.id if mlm.adapter is None else str(mlm.adapter.folder)
    if where != VLLM:
        yield find_served(where, root=root)
        return
    command, url = serve_command(mlm)
    with tempfile.TemporaryFile("w+") as log:
        quiet = os.environ | {"VLLM_NO_USAGE_STATS": "1"}  # it tells its makers nothing
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, text=True, env=quiet
        )
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # past the end below
        try:
            with watch.phase(f"loading {options.name} in vLLM"):
                _wait(process, url, log)
            yield find_served(url, root=root)
        finally:
            signal.signal(signal.SIGTERM, before)
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def serve_command(mlm: Mlm) -> tuple[list[str], str]:
    """What starts the server, on this machine alone, and its address.

    Raises:
        ValueError: vLLM is not installed; the message says how it is.
    """
    beside = Path(sys.executable).with_name(VLLM)
    program = str(beside) if beside.exists() else shutil.which(VLLM)
    if program is None:
        raise ValueError("--answer-with vllm: vLLM is not installed; pip install 'kvfix[vllm]'")
    port = free_port()
    command = [program, "serve", mlm.id, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", str(mlm.dtype).removeprefix("torch.")]
    command += ["--limit-mm-per-prompt", f'{{"image": {MOST_IMAGES}}}']
    if mlm.adapter is not None:
        settings = mlm.adapter.settings
        fits = next((rank for rank in RANKS if rank >= settings["r"]), settings["r"])
        command += ["--enable-lora", "--max-lora-rank", str(fits)]
        command += ["--lora-modules", f"kvfix={mlm.adapter.folder}"]
    return command, f"http://127.0.0.1:{port}"


def _wait(process: subprocess.Popen[str], url: str, log: Any) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            said = (log.read().strip() or "no message").splitlines()[-1]
            raise ValueError(f"vLLM: expected a server, found exit code {process.poll()}: {said}")
        if healthy(url):
            return
        time.sleep(0.5)
    raise ValueError(f"vLLM: expected a server within {PATIENCE} s, found none")
