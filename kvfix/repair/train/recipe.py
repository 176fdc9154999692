"""A repair from its config to a folder with an adapter: what both training recipes run.

`checkpoints/<run>/` then holds `adapter_model.safetensors` and `adapter_config.json` (plain PEFT
loads them), the heads, `config.yaml` as resolved, `training.json`,
`log.jsonl`, a model card, and the last checkpoints to resume from.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kvfix.bounds import check_numbers, number
from kvfix.config import dump_config
from kvfix.data.training import Conversations, read_conversations
from kvfix.data.training.examples import TRAINED, Examples, conversation_examples, scene_examples
from kvfix.data.training.verify import Bad, verify
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.key_choice import KeyOptions, choose_keys
from kvfix.repair.lora import LoraOptions, Rates, attach
from kvfix.repair.module import Repair
from kvfix.repair.proof import Proof, collator_of
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train.card import begin_record, end_record, finish, told, write_record
from kvfix.repair.train.identity import Identity, adapter_fields, check_same, fields_of
from kvfix.repair.train.launch import Launch, plan_launch
from kvfix.repair.train.ranks import agreed
from kvfix.repair.train.saves import TRAINED_FILES, publish
from kvfix.repair.train.session import Work, run_steps
from kvfix.repair.train.shared_memory import SHARED, sweep
from kvfix.repair.train.show import Monitor
from kvfix.repair.train.starts import CONFIG, Going, claim, look
from kvfix.runs.atomic import remove_leftovers, write_text
from kvfix.shipped import nano_dir
from kvfix.terminal import RichWatch
from kvfix.threads import choose_threads
from kvfix.wording import shown

# Those of transformers that need nothing but steps and warm-up.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    *("constant", "constant_with_warmup"),
)


@dataclass(frozen=True)
class Recipe:
    """A training run; a YAML file maps onto it field by field."""

    model: str = ""  # hub id or folder; empty: the shipped nano
    dtype: str = "auto"  # "auto" (the checkpoint's), "float32" or "bfloat16"
    quant: str = ""  # empty or "nf4"
    processor: str = ""  # hub id or folder of a processor; empty: the model's own
    # "scenes", or training data of a form that `kvfix/data/training` reads: a file, a folder or a
    # hub id.
    data: str = "scenes"
    # Folder that image names are relative to; empty: the one that the data lies in.
    images: str = ""
    # Decode every picture of the data before the first step, and leave bad ones out.
    verify: bool = True
    # Question types of scenes that are trained; the others are held out.
    skills: tuple[str, ...] = TRAINED
    # Folder of an adapter or checkpoint of the same shape whose weights are trained on; empty: a
    # fresh adapter.
    adapter: str = ""
    out: str = ""  # run folder; empty: checkpoints/<name of the recipe>
    steps: int = number(300, least=1)  # optimizer steps
    batch: int = number(12, least=1)  # examples a rank and micro-batch
    accumulate: int = number(1, least=1)  # micro-batches a step
    lora: LoraOptions = field(default_factory=LoraOptions)  # the adapter
    rates: Rates = field(default_factory=Rates)  # learning rates by part, at their peak
    lm: float = number(1.0, least=0)  # weight of the language model's own loss on answers
    losses: Losses = field(default_factory=Losses)  # the other terms
    keys: KeyOptions = field(default_factory=KeyOptions)  # how keys to suppress are chosen
    schedule: str = "linear"  # of the learning rates, as transformers names it
    warmup: int = number(10, least=0)  # steps up to the peak
    clip: float = number(1.0, least=0)  # largest norm of the gradient; 0: any
    zero: str = ""  # "", "0" to "3", "2_offload", "3_offload", or a DeepSpeed config
    checkpointing: bool = False  # compute activations again in backward (non-reentrant)
    # Steps between checkpoints to resume from; 0: none by steps.
    save_every: int = number(0, least=0)
    # Minutes between checkpoints to resume from: what a crash can cost; 0: none by time.
    save_minutes: float = number(10.0, least=0)
    keep: int = number(2, least=1)  # checkpoints kept
    resume: bool = False  # go on from the last checkpoint in `out`
    # Stop after this step, to go on later with resume; 0: at the end.
    stop_at: int = number(0, least=0)
    log_every: int = number(10, least=1)  # steps between lines of the log
    report_to: str = "none"  # "none", "tensorboard", "wandb"
    workers: int = number(0, least=0)  # processes that prepare batches; 0: the trainer itself
    # Of torch on the CPU; 0: one for a small model, else as torch likes.
    threads: int = number(0, least=0)
    seed: int = number(0, least=0)  # of everything

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
        ValueError: A config, a model, data or a folder that cannot be trained with, in one line.
        Interrupted: Ctrl-C or SIGTERM in the midst of the steps.
    """
    launch = plan_launch(recipe.zero, root / "recipes" / "deepspeed")
    out = Path(recipe.out) if recipe.out else root / "checkpoints" / name
    line = shlex.join(command)
    going = look(out, recipe, world=launch.world, command=line)
    with ExitStack() as stack:
        if launch.rank == 0:
            stack.enter_context(claim(out, command=line))
        monitor = stack.enter_context(Monitor(recipe.steps, out, main=launch.rank == 0))
        if launch.rank == 0 and launch.deepspeed is not None and (freed := sweep()):
            monitor.say(f"freed {freed / 2**20:.0f} MiB in {SHARED} that ended trainings had left")
        for checkpoint, why in going.torn.items():
            monitor.say(f"{checkpoint} does not count: {why}")
        if going.finished:
            monitor.say(f"{out}: finished after step {going.step}; nothing is left to do")
        elif going.last is not None and going.step >= recipe.steps:
            if launch.rank == 0:  # a kill between the last checkpoint and the end
                _finish_from(going.last, recipe, out, going)
            monitor.say(f"wrote {out} from {going.last}")
        else:
            _train(recipe, launch, out, going, monitor, command)
    return out


def _train(
    recipe: Recipe,
    launch: Launch,
    out: Path,
    going: Going,
    monitor: Monitor,
    command: Sequence[str],
) -> None:
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    examples, main = _examples(recipe, launch), launch.rank == 0
    mlm = _load(recipe, launch)
    if not recipe.threads and mlm.device.type == "cpu":
        choose_threads(sum(p.numel() for p in mlm.base.parameters()))
    for text in examples.said():
        monitor.say(text)
    identity = Identity(_known(recipe, launch, examples), mlm)
    if going.last is not None and main:
        check_same(out, going.fingerprint, identity.fields())
    keys = None
    if recipe.losses.needs().agnostic:
        shown_ones = examples
        if recipe.data == "scenes":  # a short run has fewer examples than keys need images
            shown_ones = scene_examples("train", 4 * recipe.keys.images, skills=recipe.skills)
        keys = choose_keys(mlm, shown_ones, recipe.keys, seed=recipe.seed)
        monitor.say(
            f"keys: {keys.what}; {keys.agnostic:.2%} of all keys are input-agnostic "
            f"(r < {keys.tau:.4f})"
        )
    mlm, report = attach(mlm, recipe.lora, zero=launch.stage, seed=recipe.seed)
    for text in report.lines():
        monitor.say(text)
    repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)
    line = shlex.join(command)
    record = begin_record(
        going.record,
        mlm,
        report,
        examples,
        keys=keys,
        command=line,
        world=launch.world,
        step=going.step,
    )

    def begin() -> None:
        if main:
            remove_leftovers(out, command=line)
            write_record(out, record)
            write_text(out / CONFIG, dump_config(recipe))
            for text in told(going, recipe, record):
                monitor.say(text)
            monitor.begin(None if going.last is None else going.step)

    def end(how: str, seconds: float) -> None:
        if main:
            write_record(out, end_record(record, how=how, seconds=seconds))

    work = Work(recipe, launch, repair, report, examples, out, going, monitor, identity, command)
    ended = run_steps(work, begin=begin, end=end)
    if ended.step >= recipe.steps and main:
        record = end_record(record, how="finished", seconds=ended.seconds)
        finish(recipe, out, record, identity.fields())
        monitor.say(f"wrote {out}")


def _known(recipe: Recipe, launch: Launch, examples: Examples) -> dict[str, Any]:
    """What of the fingerprint is known without reading anything big."""
    deepspeed = json.dumps(launch.deepspeed, sort_keys=True)
    return {
        **fields_of(recipe),
        "ranks": launch.world,
        "data.sha256": examples.sha256,
        "zero.config": hashlib.sha256(deepspeed.encode()).hexdigest(),
        **adapter_fields(recipe.adapter),
    }


def _finish_from(checkpoint: Path, recipe: Recipe, out: Path, going: Going) -> None:
    publish([checkpoint / n for n in TRAINED_FILES if (checkpoint / n).is_file()], out)
    finish(recipe, out, dict(going.record), going.fingerprint)


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
