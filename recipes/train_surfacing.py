"""Teach a model to say what its image values hold.

    deepspeed recipes/train_surfacing.py                              # the shipped nano, on scenes
    python recipes/train_surfacing.py steps=20 out=/tmp/try           # one CPU, about a minute
    deepspeed --num_gpus 8 recipes/train_surfacing.py --config recipes/train_surfacing_7b.yaml \
        model=llava-hf/llava-onevision-qwen2-7b-ov-hf data=train.jsonl zero=2
    torchrun --nproc_per_node 8 recipes/train_surfacing.py ...        # likewise
    kvfix train surfacing ...                                         # likewise, from a wheel

For a model whose readout of the values is right where its answer is wrong: `kvfix diagnose` calls
that unsurfaced. The nano takes about ten minutes on one core; what came of it is in
recipes/experiment/RESULTS.md. Every setting stands in train_surfacing.yaml beside this page, and
`key=value` changes it, `losses.kl.weight=0` one inside a term.
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
    with Training(recipe, "train_surfacing", command=command) as training:
        if training.done:
            return training.out

        # The data. `scenes` in the YAML says how often each kind of example and of question comes:
        # two of three questions are of Visual Similarity, whose readout is nearly always right, as
        # an answer surfaces only if it is asked for often. Two kinds are held out for the test.
        examples = read_examples(recipe, training.launch)
        training.tell(examples.said())

        # The model. All of its own weights stay as they are.
        mlm = load_model(recipe, training.launch)

        # Keys matter here only where `losses` suppress some, too, as train_artifacts.py does.
        keys = keys_to_suppress(recipe, mlm, examples)
        training.tell(keys.said() if keys else [])

        # The adapter: LoRA on the language model, and on projector and vision tower if asked.
        mlm, report = attach(mlm, recipe.lora, zero=training.launch.stage, seed=recipe.seed)
        training.tell(report.lines())

        # The losses, with the heads that they read values through. `evidence` has later values tell
        # what the readout measures, cell by cell; `distil` makes its answer the model's; `mask`,
        # `text_value` and `correspondence` have values find objects, names and points; `kl` keeps
        # other text as the base model, the adapter switched off, would say it.
        repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)

        # AdamW, a learning rate per part; checkpoints on the way; then the adapter in plain PEFT
        # form, the heads beside it, a record and a card, in checkpoints/train_surfacing/.
        training.fit(repair, report, examples)
    return training.out


if __name__ == "__main__":
    from_command_line(__file__, train)
