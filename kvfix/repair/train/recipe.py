"""The settings of a training, and what a recipe takes from them: examples, a model, keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kvfix.bounds import check_numbers, number
from kvfix.config import load_config
from kvfix.data.training.dataset import Conversations, read_conversations
from kvfix.data.training.examples import Examples, conversation_examples, scene_examples
from kvfix.data.training.mix import SceneMix
from kvfix.data.training.verify import Bad, verify
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.ranks import agreed_apart
from kvfix.repair.key_choice import ChosenKeys, KeyOptions, choose_keys
from kvfix.repair.lora import LoraOptions, Rates
from kvfix.repair.proof import Proof, collator_of
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train.launch import Launch, typed
from kvfix.shipped import nano_dir
from kvfix.terminal import RichWatch, guarded
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
    dtype: str = "auto"  # auto (the checkpoint's), float32 or bfloat16
    quant: str = ""  # empty or nf4
    processor: str = ""  # hub id or folder of a processor; empty: the model's own
    # "scenes", or a file, folder or hub id of a form that `kvfix/data/training` reads.
    data: str = "scenes"
    scenes: SceneMix = field(default_factory=SceneMix)  # what the data "scenes" is made of
    images: str = ""  # folder that image names are relative to; empty: the one of the data
    verify: bool = True  # decode every picture before the first step, and leave bad ones out
    # Folder of an adapter or checkpoint of the same shape whose weights are trained on.
    adapter: str = ""
    out: str = ""  # run folder; empty: checkpoints/<name of the recipe>
    steps: int = number(300, least=1)  # of the optimizer
    batch: int = number(12, least=1)  # examples per rank and micro-batch
    accumulate: int = number(1, least=1)  # micro-batches per step
    lora: LoraOptions = field(default_factory=LoraOptions)
    rates: Rates = field(default_factory=Rates)  # learning rates by part, at their peak
    lm: float = number(1.0, least=0)  # weight of the language model's own loss on answers
    losses: Losses = field(default_factory=Losses)  # the other terms
    keys: KeyOptions = field(default_factory=KeyOptions)  # how keys to suppress are chosen
    schedule: str = "linear"  # of the learning rates, as transformers names it
    warmup: int = number(10, least=0)  # steps up to the peak
    clip: float = number(1.0, least=0)  # largest norm of the gradient; 0: any
    zero: str = ""  # "", "0" to "3", "2_offload", "3_offload", or a DeepSpeed config
    checkpointing: bool = False  # compute activations again in backward (non-reentrant)
    save_every: int = number(0, least=0)  # steps between checkpoints; 0: none by steps
    # Minutes between checkpoints, which is what a crash can cost; 0: none by time.
    save_minutes: float = number(10.0, least=0)
    keep: int = number(2, least=1)  # checkpoints that stay
    resume: bool = False  # go on from the last checkpoint in `out`
    stop_at: int = number(0, least=0)  # stop after this step, to go on later; 0: at the end
    log_every: int = number(10, least=1)  # steps between lines of the log
    report_to: str = "none"  # none, tensorboard, wandb
    workers: int = number(0, least=0)  # processes that prepare batches; 0: the trainer itself
    # Of torch on the CPU; 0: one for a small model, else as torch likes.
    threads: int = number(0, least=0)
    seed: int = number(0, least=0)  # of everything

    def __post_init__(self) -> None:
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


def read_examples(recipe: Recipe, launch: Launch) -> Examples:
    """Scenes, as many as the run needs and none twice, or conversations without the bad ones."""
    if recipe.data == "scenes":
        n = recipe.steps * recipe.batch * recipe.accumulate * launch.world
        return scene_examples("train", n, recipe.scenes)
    lines = read_conversations(recipe.data, images=recipe.images or None)
    if recipe.verify:
        bad = agreed_apart(partial(_bad, recipe, lines), launch.rank, launch.world)
        lines = lines.without(bad)
    return conversation_examples(lines)


def _bad(recipe: Recipe, lines: Conversations) -> list[Bad]:
    """Conversations that training would stop at: all ranks leave them out alike."""
    proof = Proof(collator_of(recipe.model or str(nano_dir()), recipe.processor or None))
    with RichWatch().phase("looking at the data", len(lines)) as tick:
        return verify(lines, look=proof, tick=tick)


def keys_to_suppress(recipe: Recipe, mlm: Mlm, examples: Examples) -> ChosenKeys | None:
    """The keys that some loss suppresses, measured on the model as it stands; None without one."""
    if not recipe.losses.needs().agnostic:
        return None
    if recipe.data == "scenes":  # a short run has fewer examples than keys need images
        examples = scene_examples("train", 4 * recipe.keys.images, recipe.scenes)
    return choose_keys(mlm, examples, recipe.keys, seed=recipe.seed)


def load_model(recipe: Recipe, launch: Launch) -> Mlm:
    """The base model, where this rank computes."""
    mlm = load_mlm(
        recipe.model or str(nano_dir()),
        dtype=recipe.dtype,
        device=launch.device,
        quant=recipe.quant or None,
        processor=recipe.processor or None,
        recorded=launch.rank == 0,
    )
    if not recipe.threads and mlm.device.type == "cpu":
        choose_threads(sum(p.numel() for p in mlm.base.parameters()))
    if recipe.checkpointing:
        recompute_layers(mlm.base)
    return mlm


def read_recipe(page: Path, config: str | None, overrides: Sequence[str]) -> Recipe:
    """The settings of `recipes/<name>.py`, whose defaults are in `<name>.yaml` beside it.

    Another YAML file is a path, or the name of one beside the page.
    """
    file = Path(config or page.with_suffix(".yaml"))
    beside = page.parent / file
    return load_config(Recipe, file if file.exists() or not beside.exists() else beside, overrides)


def from_command_line(page: str, train: Callable[..., Any]) -> None:
    """Run the page of a recipe as a script, with its options out of `sys.argv`."""
    parser = argparse.ArgumentParser(prog=f"recipes/{Path(page).name}")
    parser.add_argument("--config", help="YAML file; the recipe's own by default")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # of older launchers
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting")
    asked = parser.parse_args()
    guarded(
        lambda: train(
            read_recipe(Path(page), asked.config, asked.overrides), command=typed(sys.argv)
        )
    )
