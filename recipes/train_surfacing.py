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

from kvfix.repair.module import Repair
from kvfix.repair.train.recipe import from_command_line
from kvfix.repair.train.training import Training, in_run_folder


@in_run_folder("train_surfacing")
def train(training: Training) -> None:
    """Train an adapter, and the heads through which its losses read values.

    Every rank goes through all of it.
    """
    recipe = training.recipe

    # The data. `scenes` in the YAML says how often each kind of example and of question comes: two
    # of three questions are of Visual Similarity, whose readout is nearly always right, as an
    # answer surfaces only if it is asked for often. Two kinds are held out for the test.
    examples = training.read_examples()

    # The model. All of its own weights stay as they are.
    mlm = training.load_model()

    # Keys matter here only where `losses` suppress some, too, as train_artifacts.py does.
    keys = training.choose_keys(mlm, examples)

    # The adapter: LoRA on the language model, and on projector and vision tower if asked.
    mlm, report = training.attach(mlm)

    # The losses, with the heads that they read values through. `evidence` has later values tell
    # what the readout measures, cell by cell; `distil` makes its answer the model's; `mask`,
    # `text_value` and `correspondence` have values find objects, names and points; `kl` keeps
    # other text as the base model, the adapter switched off, would say it.
    repair = Repair(mlm, recipe.losses, lm=recipe.lm, seed=recipe.seed, keys=keys)

    # AdamW, a learning rate per part; checkpoints on the way; then the adapter in plain PEFT form,
    # the heads beside it, a record and a card, in checkpoints/train_surfacing/.
    training.fit(repair, report, examples)


if __name__ == "__main__":
    from_command_line(__file__, train)
