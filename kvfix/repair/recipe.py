"""A repair from its config to a folder with an adapter: what both training recipes run.

`checkpoints/<run>/` then holds `adapter_model.safetensors` and `adapter_config.json` (plain PEFT
loads them), the heads, the gate if there is one, `config.yaml` as resolved, `training.json`,
`log.jsonl`, a model card, and the last checkpoints to resume from.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvfix.bounds import check_numbers, number
from kvfix.config import dump_config
from kvfix.data.examples import TRAINED, Examples, conversation_examples, scene_examples
from kvfix.data.training import Conversations, read_conversations
from kvfix.data.training.verify import Bad, verify
from kvfix.models import Mlm, load_mlm
from kvfix.renamed import recompute_layers
from kvfix.repair.batch import Collator
from kvfix.repair.key_choice import ChosenKeys, KeyOptions, choose_keys
from kvfix.repair.launch import Launch, plan_launch, set_rank_variables
from kvfix.repair.lora import LoraOptions, LoraReport, Rates, attach
from kvfix.repair.module import Repair
from kvfix.repair.proof import Proof, collator_of
from kvfix.repair.ranks import agreed
from kvfix.repair.show import Monitor
from kvfix.repair.terms import Losses
from kvfix.shipped import nano_dir
from kvfix.terminal import RichWatch
from kvfix.wording import shown

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate")
# Those of transformers that need nothing but steps and warm-up.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    *("constant", "constant_with_warmup"),
)


@dataclass(frozen=True)
class Recipe:
    """A training run; a YAML file maps onto it field by field.

    Attributes:
        model: Hub id or folder; empty: the shipped nano.
        dtype: "auto" (the checkpoint's), "float32" or "bfloat16".
        quant: Empty or "nf4".
        processor: Hub id or folder of a processor; empty: the model's own.
        data: "scenes", or training data of a form that `kvfix/data/training` reads: a file, a
            folder or a hub id.
        images: Folder that image names are relative to; empty: the one that the data lies in.
        verify: Decode every picture of the data before the first step, and leave bad ones out.
        skills: Question types of scenes that are trained; the others are held out.
        out: Run folder; empty: checkpoints/<name of the recipe>.
        steps: Optimizer steps.
        batch: Examples a rank and micro-batch.
        accumulate: Micro-batches a step.
        lora: The adapter.
        rates: Learning rates by part, at their peak.
        lm: Weight of the language model's own loss on answers.
        losses: The other terms.
        keys: How keys to suppress are chosen.
        schedule: Of the learning rates, as transformers names it.
        warmup: Steps up to the peak.
        clip: Largest norm of the gradient; 0: any.
        zero: "", "0" to "3", "2_offload", "3_offload", or a DeepSpeed config.
        checkpointing: Compute activations again in backward (non-reentrant).
        save_every: Steps between checkpoints to resume from; 0: none.
        keep: Checkpoints kept.
        resume: Go on from the last checkpoint in `out`.
        stop_at: Stop after this step, to go on later with resume; 0: at the end.
        log_every: Steps between lines of the log.
        report_to: "none", "tensorboard", "wandb".
        workers: Processes that prepare batches; 0: the trainer itself.
        threads: Of torch on the CPU; 0: as torch likes.
        seed: Of everything.
    """

    model: str = ""
    dtype: str = "auto"
    quant: str = ""
    processor: str = ""
    data: str = "scenes"
    images: str = ""
    verify: bool = True
    skills: tuple[str, ...] = TRAINED
    out: str = ""
    steps: int = number(300, least=1)
    batch: int = number(12, least=1)
    accumulate: int = number(1, least=1)
    lora: LoraOptions = field(default_factory=LoraOptions)
    rates: Rates = field(default_factory=Rates)
    lm: float = number(1.0, least=0)
    losses: Losses = field(default_factory=Losses)
    keys: KeyOptions = field(default_factory=KeyOptions)
    schedule: str = "linear"
    warmup: int = number(10, least=0)
    clip: float = number(1.0, least=0)
    zero: str = ""
    checkpointing: bool = False
    save_every: int = number(0, least=0)
    keep: int = number(2, least=1)
    resume: bool = False
    stop_at: int = number(0, least=0)
    log_every: int = number(10, least=1)
    report_to: str = "none"
    workers: int = number(0, least=0)
    threads: int = number(0, least=0)
    seed: int = number(0, least=0)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_numbers(self)
        if self.quant not in ("", "nf4"):
            raise ValueError(f"expected quant to be empty or nf4, found {shown(self.quant)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"expected schedule {', '.join(SCHEDULES)}, found {shown(self.schedule)}"
            )
        if self.losses.dependence.weight > 0 and self.batch * self.accumulate < 2:
            raise ValueError(
                "expected two examples a step for `dependence`, found batch=1 and accumulate=1: "
                "one image does not tell what its keys depend on"
            )


def run(recipe: Recipe, name: str, *, root: Path, command: Sequence[str]) -> Path:
    """Train, and write the run folder.

    Args:
        recipe: The config.
        name: Of the recipe.
        root: The checkout: DeepSpeed presets are in its recipes/, runs in its checkpoints/.
        command: As it was typed, for the card.

    Returns:
        The run folder.

    Raises:
        ValueError: A config, a model or data that cannot be trained, in one line.
    """
    launch = plan_launch(recipe.zero, root / "recipes" / "deepspeed")
    out = Path(recipe.out) if recipe.out else root / "checkpoints" / name
    last = _last_checkpoint(out, recipe, launch.world)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    examples = _examples(recipe, launch)
    mlm = _load(recipe, launch)
    with Monitor(
        recipe.steps, out, main=launch.rank == 0, since=None if last is None else _step(last)
    ) as monitor:
        for line in examples.said():
            monitor.say(line)
        keys = None
        if recipe.losses.needs().agnostic:
            shown = examples
            if recipe.data == "scenes":  # a short run has fewer examples than keys need images
                shown = scene_examples("train", 4 * recipe.keys.images, skills=recipe.skills)
            keys = choose_keys(mlm, shown, recipe.keys, seed=recipe.seed)
            monitor.say(
                f"keys: {keys.what}; {keys.agnostic:.2%} of all keys are input-agnostic "
                f"(r < {keys.tau:.4f})"
            )
        mlm, report = attach(mlm, recipe.lora, zero=launch.stage, seed=recipe.seed)
        for line in report.lines():
            monitor.say(line)
        repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)
        started = time.time()
        seconds = _train(recipe, launch, repair, report, examples, out, last, monitor)
        if launch.rank == 0:
            _write(recipe, out, mlm, report, keys, examples, list(command), started, seconds)
            monitor.say(f"wrote {out}")
    return out


def _examples(recipe: Recipe, launch: Launch) -> Examples:
    if recipe.data == "scenes":
        # As many as the run needs, none twice.
        n = recipe.steps * recipe.batch * recipe.accumulate * launch.world
        return scene_examples("train", n, skills=recipe.skills)
    lines = read_conversations(recipe.data, images=recipe.images or None)
    if recipe.verify:
        lines = lines.without(agreed(partial(_bad, recipe, lines), launch))
    return conversation_examples(lines)


def _bad(recipe: Recipe, lines: Conversations) -> list[Bad]:
    """Conversations that training would stop at: all ranks leave them out alike."""
    proof = Proof(collator_of(recipe.model or str(nano_dir()), recipe.processor or None))
    with RichWatch().phase("looking at the data", len(lines)) as tick:
        return verify(lines, look=proof, tick=tick)


def _load(recipe: Recipe, launch: Launch) -> Mlm:
    mlm = load_mlm(
        recipe.model or str(nano_dir()),
        dtype=recipe.dtype,
        device=launch.device,
        quant=recipe.quant or None,
        processor=recipe.processor or None,
    )
    if recipe.checkpointing:
        recompute_layers(mlm.base)
    return mlm


def _last_checkpoint(out: Path, recipe: Recipe, world: int) -> Path | None:
    """Where to go on from; one that a kill cut off while it was written does not count.

    Raises:
        ValueError: Something in the folder that nobody asked to go on with, nothing to go on with,
            or a checkpoint of another number of ranks.
    """
    found = sorted(out.glob("checkpoint-*"), key=_step)
    if recipe.resume:
        whole = [p for p in found if (p / "trainer_state.json").is_file()]
        if not whole:
            raise ValueError(f"{out}: expected a checkpoint to resume from, found none")
        ranks = len(list(whole[-1].glob("rng_state*.pth")))
        if ranks != world:
            raise ValueError(
                f"{whole[-1]}: expected {ranks} ranks, as when it was written, found {world}"
            )
        return whole[-1]
    if found or (out / "adapter_model.safetensors").exists():
        raise ValueError(
            f"{out}: expected an empty run folder, found another run; set resume=true to go on "
            "with it, or out= another folder"
        )
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _train(
    recipe: Recipe,
    launch: Launch,
    repair: Repair,
    report: LoraReport,
    examples: Examples,
    out: Path,
    last: Path | None,
    monitor: Monitor,
) -> float:
    """Run the steps; seconds they took."""
    from transformers import TrainerCallback, TrainingArguments  # seconds to import

    from kvfix.repair.trainer import RepairTrainer

    if recipe.checkpointing:
        repair.model.enable_input_require_grads()
    set_rank_variables(launch)
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.rates.lm,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.clip,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or recipe.steps,
        save_total_limit=recipe.keep,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=launch.deepspeed is not None and repair.mlm.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=launch.deepspeed,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=False,
        # Else the last batch of an epoch is filled up from its start, on several ranks only.
        dataloader_drop_last=len(examples) >= recipe.batch * launch.world,
        ddp_find_unused_parameters=False,
        report_to=recipe.report_to,
        disable_tqdm=True,
        log_level="error",
    )
    if args.world_size != launch.world:
        # Each rank would train alone on the same data, and nothing would say so.
        raise ValueError(f"expected {launch.world} ranks, found {args.world_size}")

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == recipe.stop_at:
                control.should_training_stop = control.should_save = True

    collator = Collator(
        repair.mlm.processor,
        repair.mlm.config,
        repair.mlm.family,
        choices=recipe.losses.distil.weight > 0,
    )
    trainer = RepairTrainer(
        repair,
        args,
        examples,
        collator,
        report=report,
        rates=recipe.rates,
        resumes=last is not None,
        show=monitor.line,
    )
    trainer.add_callback(Stop())
    start = time.time()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    seconds = time.time() - start
    trainer.save_model(str(out))
    gc.collect()
    return seconds


def _write(
    recipe: Recipe,
    out: Path,
    mlm: Mlm,
    report: LoraReport,
    keys: ChosenKeys | None,
    examples: Examples,
    command: list[str],
    started: float,
    seconds: float,
) -> None:
    """The resolved config, what ran on what, and a card."""
    (out / "config.yaml").write_text(dump_config(recipe), encoding="utf-8")
    record = {
        "command": " ".join(command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 1),
        "model": {"id": mlm.id, "family": mlm.config.model_type, "sha256": mlm.sha256},
        "data": {
            "name": examples.name,
            "n": len(examples),
            "left_out": list(examples.left_out),
            "forms": dict(examples.forms),
            "notes": list(examples.notes),
        },
        "trainable": report.trainable,
        "share": report.share,
        "modules": {part: len(names) for part, names in report.modules.items()},
        "keys": None if keys is None else keys._asdict() | {"keys_SHV": int(keys.keys_SHV.sum())},
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git": _git(),
        "device": str(mlm.device),
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(recipe, record), encoding="utf-8")


def card(recipe: Recipe, record: dict[str, Any]) -> str:
    """The adapter's README, in the form that hubs read; replaces PEFT's own."""
    terms = {"lm": recipe.lm} | {n: t.weight for n, t in recipe.losses.active().items()}
    losses = ", ".join(f"{name} {weight:g}" for name, weight in terms.items())
    parts = ", ".join(f"{part}: {n:,}" for part, n in record["trainable"].items())
    return f"""---
base_model: {record["model"]["id"]}
library_name: peft
tags: [lora, kvfix]
---

# {Path(recipe.out or "repair").name}

A LoRA adapter for `{record["model"]["id"]}` ({record["model"]["family"]}, weights sha256
`{record["model"]["sha256"][:12]}`), made by

    {record["command"]}

in {record["seconds"] / 60:.1f} minutes: {recipe.steps} steps of {recipe.batch} x
{recipe.accumulate} examples of {record["data"]["name"]}. Losses and weights: {losses}. Trained
parameters: {parts} ({record["share"]:.2%} of all).

Before against after is measured by `kvfix eval` on both and `kvfix compare`, or by
`python recipes/repair.py`, which writes its table here.
"""


def _git() -> str | None:
    """Commit of the checkout that runs, marked where files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
