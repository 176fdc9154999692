"""Train one nano MLM from scratch, in four stages, as real ones are made.

    python recipes/nano/train_nano.py family=llava_onevision     # or qwen2_5_vl, llava_next

dense: the vision tower learns to label every cell of pictures; text: the language model learns to
answer about scenes told in words, and which letter an option has; align: the image tokens learn
to carry the words of their cell; talk: questions about pictures. Every setting stands in
train_nano.yaml, every stage prints its held-out figures; the command writes
checkpoints/nano/<family>/ (bf16) and its README.md. Killed at any moment, the same command
continues. A demo of a minute or two: `dense_steps=4 text_steps=4 align_steps=2 talk_steps=4
gallery=64 held_out=4 exam=4 out=/tmp/nano states=/tmp/nano-states`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from card import card
from curriculum import ONLY, Config, exam_lessons, stages
from exam import single_questions, written
from models import build_nano
from stages import Pace, console, run_stage, spent_on

from kvfix.config import dump_config, load_config
from kvfix.mlm.native import has_bfloat16

HERE = Path(__file__).parent


def main() -> None:
    """Train the remaining stages, grade on held-out scenes, save."""
    c = load_config(Config, HERE / "train_nano.yaml", sys.argv[1:])
    torch.set_num_threads(c.threads)
    checkpoints = HERE.parent.parent / "checkpoints"
    out = Path(c.out) if c.out else checkpoints / "nano" / c.family
    states_dir = Path(c.states) if c.states else checkpoints / "nano-training"
    nano = build_nano(c.family, seed=c.seed)
    if has_bfloat16():
        nano.model.set_attn_implementation("eager")  # in bf16 faster than the fused kernel
    pace = Pace(c.warmup, c.weight_decay, c.save_every, c.measure_every, c.stop_at)
    spent = {}
    for name, make in stages(c, nano, states_dir).items():
        if name not in ONLY[c.only]:
            continue
        state = states_dir / f"{c.family}-{c.seed}-{name}.pt"
        if not run_stage(make(), pace, state):
            return
        spent[name] = spent_on(state)
    if c.only:
        return
    nano.model.to(torch.bfloat16).eval()
    nano.model.save_pretrained(out)
    nano.processor.save_pretrained(out)
    (out / "training.yaml").write_text(dump_config(c))
    if not has_bfloat16():
        nano.model.float()  # the same weights, answering faster
    asked = single_questions(exam_lessons("test", c.exam, c.turns))
    text = card(c, nano, spent, asked, written(nano, asked))
    (out / "README.md").write_text(text)
    console.print(text)


if __name__ == "__main__":
    main()
