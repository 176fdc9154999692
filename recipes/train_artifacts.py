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

from kvfix.repair.module import Repair
from kvfix.repair.train.recipe import from_command_line
from kvfix.repair.train.training import Training, in_run_folder


@in_run_folder("train_artifacts")
def train(training: Training) -> None:
    """Train an adapter; every rank goes through all of it."""
    recipe = training.recipe

    # The data; `scenes` in the YAML says how often each kind of example and of question comes.
    examples = training.read_examples()

    # The model. All of its own weights stay as they are.
    mlm = training.load_model()

    # The keys: over 64 training images of one size, how much of a key moves with the image (r).
    # Those below the diagnosis's bound are suppressed; `keys` in the YAML says what to do where
    # there is none. Every rank measures and finds the same.
    keys = training.choose_keys(mlm, examples)

    # The adapter: LoRA; `lora.only` in the YAML for 7B models leaves values as they are.
    mlm, report = training.attach(mlm)

    # The losses. `dependence` raises r of the chosen keys, so that they follow the image again;
    # `mass` takes the attention of late text away from them; `kl` keeps other text as the base
    # model, the adapter switched off, would say it.
    repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)

    # AdamW; checkpoints on the way; then the adapter in plain PEFT form, a record and a card, in
    # checkpoints/train_artifacts/.
    training.fit(repair, report, examples)


if __name__ == "__main__":
    from_command_line(__file__, train)
