"""What a repair's losses cost: time and memory of a training step beside plain LoRA.

    python benchmarks/train.py                  # the recipes beside plain LoRA in the same trainer
    pip install trl && python benchmarks/train.py --trl      # plain LoRA beside TRL's SFTTrainer
    python benchmarks/train.py --trl --dtype bfloat16 --model DIR --batch 4 --steps 16 --rounds 2

Every side is a process of its own with the same model, adapter, examples, batch and data type, on
one thread; sides take turns for some rounds. Time is the mean step of a process, in CPU-seconds,
over whole periods of the anchor that runs every few steps only and without the first period, and
the ratio that of the medians over rounds; memory is the largest resident set. "the guard" is the
part of a plain step that looks for numbers that are not finite and for wishes to save or stop
(`kvfix.repair.train.guard`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PERIOD = 8  # steps, of the `kl` anchor; the first period is left out: allocators, first gradients
PLAIN, TRL = "plain LoRA", "TRL SFTTrainer"
OFF = (
    "losses.mask.weight=0",
    "losses.text_value.weight=0",
    "losses.correspondence.weight=0",
    "losses.evidence.weight=0",
    "losses.distil.weight=0",
    "losses.kl.weight=0",
)
RANK = ("lora.rank=64", "lora.alpha=64")  # of the surfacing recipe
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    PLAIN: ("train_surfacing", OFF),
    "surfacing recipe": ("train_surfacing", ()),
    "artifacts recipe": ("train_artifacts", RANK),
}


def main() -> None:
    """Measure, or be one of the measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", action="store_true", help="beside TRL, on questions alone")
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "nano" / "llava_onevision"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=32, help=f"a multiple of {PERIOD}")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.steps % PERIOD or asked.steps <= PERIOD:
        parser.error(f"expected --steps as {2 * PERIOD}, {3 * PERIOD}, ..., found {asked.steps}")
    if asked.child:
        print(json.dumps(child(asked.child, asked)))
        return
    names = [PLAIN, TRL] if asked.trl else list(SIDES)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(asked.rounds):
        for name in names:
            seen[name].append(in_a_process(name, asked))
    _show(names, seen)


def in_a_process(
    name: str, asked: argparse.Namespace, python: str = sys.executable
) -> dict[str, float]:
    """CPU-seconds a step, of them the guard's, and memory of one side, by this or another Python.

    Raises:
        RuntimeError: the side failed.
    """
    command = [python, __file__, "--child", name, "--model", asked.model]
    command += ["--dtype", asked.dtype, "--steps", str(asked.steps), "--batch", str(asked.batch)]
    command += ["--trl"] if asked.trl else []
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    said = subprocess.run(command, env=env, capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(f"{name}: {said.stderr[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def child(name: str, asked: argparse.Namespace) -> dict[str, float]:
    """Train some steps on one side."""
    import torch

    torch.set_num_threads(1)
    guard = _watched_guard()
    begun = _trl_steps(asked) if name == TRL else _own_steps(name, asked)
    seconds = [after - before for before, after in itertools.pairwise(begun)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = sum(guard) / len(seconds)
    whole = seconds[PERIOD - asked.steps :]
    return {"seconds": statistics.fmean(whole), "mib": peak, "guard": spent}


def _watched_guard() -> list[float]:
    """CPU-seconds that each call of the guard's methods takes; grows while a training runs."""
    from kvfix.repair.train.guard import Guard

    spent: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent.append(time.process_time() - start)

        return run

    for name in ("begin", "add", "norm", "end", "flags", "send", "read"):
        setattr(Guard, name, timed(getattr(Guard, name)))
    return spent


def _own_steps(name: str, asked: argparse.Namespace) -> list[float]:
    """A recipe's clock; questions alone where the other side is TRL."""
    from importlib import import_module

    from kvfix.config import load_config
    from kvfix.repair.train.guard import Guard
    from kvfix.repair.train.recipe import Recipe

    config, overrides = SIDES[name]
    begun, begin = list[float](), Guard.begin

    def clocked(guard: Guard) -> None:
        begun.append(time.process_time())
        begin(guard)

    Guard.begin = clocked  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as folder:
        data = [f"data={_questions(Path(folder), asked)}"] if asked.trl else []
        options = [
            f"model={asked.model}",
            f"dtype={asked.dtype}",
            f"out={folder}/run",
            f"steps={asked.steps}",
            f"batch={asked.batch}",
            "log_every=1",
            "threads=1",
            *overrides,
            *data,
        ]
        asked_for = load_config(Recipe, ROOT / "recipes" / f"{config}.yaml", options)
        import_module(f"kvfix.recipes.{config}").train(asked_for, command=sys.argv)
    return begun


def _questions(folder: Path, asked: argparse.Namespace) -> Path:
    """Scenes' questions as files on disk, which both sides read."""
    from kvfix.data.scenes.questions import SKILLS, scene_question

    file = folder / "train.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for index in range(asked.steps * asked.batch):
            skill = tuple(SKILLS)[index % len(SKILLS)]
            question = scene_question("train", skill, index // len(SKILLS))
            names = []
            for i, image in enumerate(question.images):
                names.append(f"{index}_{i}.png")
                image.save(folder / names[-1])
            user = "<image>" * len(names) + question.prompt
            messages = [
                {"role": "user", "content": user},
                {"role": "assistant", "content": question.letter},
            ]
            line = {"id": question.id, "images": names, "messages": messages}
            lines.write(json.dumps(line) + "\n")
    return file


def _trl_steps(asked: argparse.Namespace) -> list[float]:
    """The same questions through `trl.SFTTrainer`, loss on the answers alone."""
    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from kvfix.config import load_config
    from kvfix.mlm.load import load_mlm
    from kvfix.repair.train.recipe import Recipe

    config = load_config(
        Recipe, ROOT / "recipes" / "train_surfacing.yaml", [f"model={asked.model}"]
    )
    mlm = load_mlm(asked.model, dtype=asked.dtype, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        lines = map(json.loads, _questions(Path(folder), asked).read_text().splitlines())
        rows = [_prompt_completion(line, Path(folder)) for line in lines]
        data = datasets.Dataset.from_list(rows).cast_column(
            "images", datasets.List(datasets.Image())
        )
        args = SFTConfig(
            output_dir=f"{folder}/trl",
            max_steps=asked.steps,
            per_device_train_batch_size=asked.batch,
            learning_rate=config.rates.lm,
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=asked.dtype == "bfloat16",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        lora = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
            target_modules=mlm.lora_targets(*config.lora.parts),
        )
        trainer = SFTTrainer(
            mlm.model, args, train_dataset=data, processing_class=mlm.processor, peft_config=lora
        )
        clock = _step_clock()
        trainer.add_callback(clock)
        trainer.train()
    return clock.begun


def _prompt_completion(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    user, assistant = line["messages"]
    text = user["content"].replace("<image>", "")
    return {
        "images": [str(folder / name) for name in line["images"]],
        "prompt": [{"role": "user", "content": text}],
        "completion": [assistant],
    }


def _step_clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """When steps end, in CPU-seconds."""

        def __init__(self) -> None:
            self.begun: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.begun.append(time.process_time())

    return Clock()


def _show(names: list[str], seen: dict[str, list[dict[str, float]]]) -> None:
    table = Table("side", "s/step", "ratio", "peak MiB", "ratio")
    medians = {
        name: [statistics.median(run[key] for run in seen[name]) for key in ("seconds", "mib")]
        for name in names
    }
    first = medians[names[0]]
    for name in names:
        seconds, mib = medians[name]
        ratios = f"{seconds / first[0]:.3f}x", f"{mib / first[1]:.3f}x"
        table.add_row(name, f"{seconds:.3f}", ratios[0], f"{mib:.0f}", ratios[1])
        if name == PLAIN:
            guard = statistics.median(run["guard"] for run in seen[name])
            table.add_row("of it, the guard", f"{guard:.5f}", f"{guard / seconds:.5f}x", "", "")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
