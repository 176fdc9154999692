"""Train one nano MLM from scratch on scene captions, attributes, positions and counts.

    python recipes/train_nano.py family=llava_onevision     # or qwen2_5_vl, llava_next

First the image tokens learn to name what they show, then the model learns to talk about it. Every
setting stands in recipes/train_nano.yaml. About an hour and a half on one CPU core; writes
checkpoints/nano/<family>/ (bf16, a few MB) and its README.md with held-out scores. Interrupted, the
same command continues. A demo of one minute: `steps=30 exam=8 out=/tmp/nano`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from nano_lessons import Gallery, collate, draw_lesson, examine, naming_loss
from nano_models import Nano, build_nano
from rich.console import Console

from kvfix.config import dump_config, load_config

HERE = Path(__file__).parent
console = Console(stderr=True)


@dataclass(frozen=True)
class Config:
    """recipes/train_nano.yaml, field by field."""

    family: str = "llava_onevision"
    out: str = ""  # empty: checkpoints/nano/<family>
    steps: int = 8000
    batch: int = 12
    turns: int = 7
    pair_every: int = 6
    lr: float = 2e-3
    warmup: int = 150
    weight_decay: float = 0.05
    naming_steps: int = 6000
    naming_batch: int = 32
    gallery: int = 24576
    ease_steps: int = 800
    seed: int = 0
    threads: int = 1
    save_every: int = 250
    states: str = ""  # empty: checkpoints/nano-training
    last_step: int = 0  # write the model after this step of the schedule; 0: after the last
    stop_at: int = 0  # stop after this step, to go on later; 0: at the end
    exam: int = 160


def learning_rate(step: int, c: Config) -> float:
    """In each of the two stages a linear warm-up, then a straight line down to zero."""
    naming = step < c.naming_steps
    since = step if naming else step - c.naming_steps
    length = c.naming_steps if naming else c.steps - c.naming_steps
    return c.lr * min((since + 1) / c.warmup, 1.0) * (length - since) / length


def lesson_loss(c: Config, nano: Nano, lesson: int) -> torch.Tensor:
    """Answer loss of one batch of conversations, nats a token."""
    pair = lesson % c.pair_every == c.pair_every - 1
    ease = max(0.0, 1 - lesson / c.ease_steps)
    lessons = [
        draw_lesson("train", lesson * c.batch + i, pair=pair, ease=ease, turns=c.turns)
        for i in range(c.batch)
    ]
    batch = collate(nano, lessons)
    # Padding is on the right, where causal attention never looks: without a mask it runs faster.
    del batch["attention_mask"]
    return nano.model(**batch, use_cache=False).loss


class Trained(NamedTuple):
    """How far a training is: running mean of the loss (nats a token), minutes of all starts."""

    loss: float
    minutes: float


def train(c: Config, nano: Nano, state_file: Path) -> Trained:
    """Run the remaining steps."""
    model = nano.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=c.lr, betas=(0.9, 0.98), weight_decay=c.weight_decay
    )
    first, recent, before = 0, 0.0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, recent, before = state["step"], state["loss"], state["minutes"]
        console.print(f"continuing at step {first}")
    model.train()
    if first < c.naming_steps:
        gallery = Gallery(nano, c.gallery)
    start = time.time()

    def minutes() -> float:
        return before + (time.time() - start) / 60

    for step in range(first, c.stop_at or c.last_step or c.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, c)
        with torch.autocast("cpu", torch.bfloat16):
            if step < c.naming_steps:
                loss = naming_loss(nano, *gallery.batch(step, c.naming_batch))
            else:
                loss = lesson_loss(c, nano, step - c.naming_steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = loss.item() if step in (0, c.naming_steps) else 0.99 * recent + 0.01 * loss.item()
        if (step + 1) % 50 == 0:
            pace = (step + 1 - first) / (time.time() - start)
            console.print(f"step {step + 1}/{c.steps}  loss {recent:.4f}  {pace:.2f} steps/s")
        if (step + 1) % c.save_every == 0:
            _save_state(state_file, model, optimizer, step + 1, Trained(recent, minutes()))
    return Trained(recent, minutes())


def _save_state(path: Path, model, optimizer, step: int, so_far: Trained) -> None:
    """Write beside, then rename: an interrupted write never replaces a good state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step, **so_far._asdict()}, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def main() -> None:
    """Train, grade on held-out scenes, save."""
    c = load_config(Config, HERE / "train_nano.yaml", sys.argv[1:])
    torch.set_num_threads(c.threads)
    out = Path(c.out) if c.out else HERE.parent / "checkpoints" / "nano" / c.family
    nano = build_nano(c.family, seed=c.seed)
    millions = sum(p.numel() for p in nano.model.parameters()) / 1e6
    console.print(f"{c.family}: {millions:.2f} M parameters, {c.steps} steps of {c.batch} lessons")
    states = Path(c.states) if c.states else HERE.parent / "checkpoints" / "nano-training"
    done = train(c, nano, states / f"{c.family}-{c.seed}.pt")
    if c.stop_at:
        return
    nano.model.to(torch.bfloat16).eval()
    nano.model.save_pretrained(out)
    nano.processor.save_pretrained(out)
    grades, choice = examine(nano, n=c.exam)
    (out / "training.yaml").write_text(dump_config(c))
    (out / "README.md").write_text(card(c, millions, done, grades, choice))
    console.print((out / "README.md").read_text())


def _settings(c: Config) -> str:
    """What of the command line moves the result, as it has to be typed."""
    usual = load_config(Config, HERE / "train_nano.yaml", [f"family={c.family}"])
    elsewhere = ("out", "states", "threads", "save_every", "stop_at", "exam")  # move no weight
    changed = (k for k, v in asdict(usual).items() if k not in elsewhere and getattr(c, k) != v)
    return "".join(f" {k}={getattr(c, k)}" for k in changed)


def card(c: Config, millions: float, done: Trained, grades, choice) -> str:
    """The checkpoint's README: what it is, how it was made, how well it answers."""
    rows = "\n".join(
        f"| {g.kind} | {g.n} | {100 * g.accuracy:.1f} % | {100 * g.chance:.1f} % |" for g in grades
    )
    return f"""# nano {c.family}

{millions:.2f} M parameters in the real Hugging Face architecture, bf16, trained from scratch on
procedural scenes: {c.naming_steps} steps in which the image tokens learn to name what they show,
then {(c.last_step or c.steps) - c.naming_steps} steps of {c.batch} conversations (captions,
attributes, places, counts, two-image captions, multiple choice on attributes). No perception
question was trained.

    python recipes/train_nano.py family={c.family}{_settings(c)}

took {done.minutes:.0f} minutes on {c.threads} core(s); last loss {done.loss:.3f} nats a token.
Held-out scenes (split test, {c.exam} single-image and {c.exam // 4} two-image conversations),
greedy answers that equal the truth; chance = always giving the most frequent answer:

| asked | n | right | chance |
|---|---:|---:|---:|
{rows}

Multiple choice on attributes: n {choice["n"]}, unparsed {100 * choice["unparsed"]:.1f} %,
letters given {json.dumps(choice["given"])}, letters true {json.dumps(choice["true"])}.
"""


if __name__ == "__main__":
    main()
