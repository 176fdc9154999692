"""Suppress image keys that depend on no image, so that late text looks at those that do.

    deepspeed recipes/train_artifacts.py                              # the shipped nano, on scenes
    python recipes/train_artifacts.py steps=20 out=/tmp/try           # one CPU, about a minute
    deepspeed --num_gpus 8 recipes/train_artifacts.py --config recipes/train_artifacts_7b.yaml \
        model=Qwen/Qwen2.5-VL-7B-Instruct data=train.jsonl zero=2
    torchrun --nproc_per_node 8 recipes/train_artifacts.py ...        # likewise
    kvfix train artifacts ...                                         # likewise, from a wheel

For a model in which `kvfix diagnose --only keys` finds input-agnostic keys. The nanos have none, so
here the lowest 5 % stand in for them; it takes about five minutes on one core. What came of it,
also where such keys were planted, is in recipes/experiment/RESULTS.md. Every setting stands in
train_artifacts.yaml beside this page, and `key=value` changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvfix.repair.lora import attach
from kvfix.repair.module import Repair
from kvfix.repair.train.recipe import (
    Recipe,
    from_command_line,
    keys_to_suppress,
    load_model,
    read_examples,
)
from kvfix.repair.train.training import Training


def train(recipe: Recipe, *, command: Sequence[str]) -> Path:
    """Train an adapter; every rank goes through all of it.

    Args:
        recipe: The settings.
        command: As it was typed, for messages and the card.

    Returns:
        The run folder.
    """
    with Training(recipe, "train_artifacts", command=command) as training:
        if training.done:
            return training.out

        # The data; `scenes` in the YAML says how often each kind of example and of question comes.
        examples = read_examples(recipe, training.launch)
        training.tell(examples.said())

        # The model. All of its own weights stay as they are.
        mlm = load_model(recipe, training.launch)

        # The keys: over 64 training images of one size, how much of a key moves with the image (r).
        # Those below the diagnosis's bound are suppressed; `keys` in the YAML says what to do where
        # there is none. Every rank measures and finds the same.
        keys = keys_to_suppress(recipe, mlm, examples)
        training.tell(keys.said() if keys else [])

        # The adapter: LoRA; `lora.only` in the YAML for 7B models leaves values as they are.
        mlm, report = attach(mlm, recipe.lora, zero=training.launch.stage, seed=recipe.seed)
        training.tell(report.lines())

        # The losses. `dependence` raises r of the chosen keys, so that they follow the image again;
        # `mass` takes the attention of late text away from them; `kl` keeps other text as the base
        # model, the adapter switched off, would say it.
        repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)

        # AdamW; checkpoints on the way; then the adapter in plain PEFT form, a record and a card,
        # in checkpoints/train_artifacts/.
        training.fit(repair, report, examples)
    return training.out


if __name__ == "__main__":
    from_command_line(__file__, train)
