"""A checkpoint's README: what it is, how it was made, what it mastered, its marks first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from batches import Lesson
from curriculum import Config
from exam import Choices, Grade, choices, grades
from models import Nano
from stages import Spent

from kvfix.config import load_config

ELSEWHERE = (
    "out",
    "states",
    "threads",
    "save_every",
    "measure_every",
    "held_out",
    "stop_at",
    "only",
)


def settings(c: Config) -> str:
    """What of the command line moves the result, as it has to be typed."""
    usual = load_config(Config, Path(__file__).with_name("train_nano.yaml"), [f"family={c.family}"])
    still = (*ELSEWHERE, "exam", "only")
    changed = (k for k, v in asdict(usual).items() if k not in still and getattr(c, k) != v)
    return "".join(f" {k}={getattr(c, k)}" for k in changed)


def _share(found: list[Grade], kinds: tuple[str, ...]) -> float:
    """Accuracy over all questions of some kinds."""
    chosen = [g for g in found if g.kind in kinds]
    return sum(g.n * g.accuracy for g in chosen) / max(sum(g.n for g in chosen), 1)


ATTRIBUTE_CHOICES = tuple(
    f"choice_{kind}" for kind in ("colour", "shape", "texture", "count", "position", "place")
)


# Captions right in the cards of the first generation, asked about scenes as these.
CAPTIONS_BEFORE = {"llava_onevision": 0.125, "qwen2_5_vl": 0.169, "llava_next": 0.031}


def marks(family: str, found: list[Grade], form: Choices) -> list[tuple[str, str, bool]]:
    """What a nano must master: words, figure, passed."""
    attribute = _share(found, ATTRIBUTE_CHOICES)
    most = max(form.given.values()) / max(form.n, 1)
    letter, at = _share(found, ("letter",)), _share(found, ("at_letter",))
    caption, before = _share(found, ("caption",)), CAPTIONS_BEFORE[family]
    by_number = [_share(found, (f"choices of {n}",)) for n in (2, 4)]
    return [
        ("attribute choices >= 80 %", f"{100 * attribute:.1f} %", attribute >= 0.8),
        (
            "choices of two and of four options >= 80 %",
            f"{100 * by_number[0]:.1f} %, {100 * by_number[1]:.1f} %",
            min(by_number) >= 0.8,
        ),
        ("no letter given to more than 45 %", f"{100 * most:.1f} %", most <= 0.45),
        ("unparsed < 1 %", f"{100 * form.unparsed:.1f} %", form.unparsed < 0.01),
        ("reading the letter at a mark >= 90 %", f"{100 * letter:.1f} %", letter >= 0.9),
        ("naming what is at a letter >= 70 %", f"{100 * at:.1f} %", at >= 0.7),
        (f"captions > {100 * before:.1f} %, as before", f"{100 * caption:.1f} %", caption > before),
    ]


def card(
    c: Config, nano: Nano, spent: dict[str, Spent], asked: list[Lesson], answers: list[str]
) -> str:
    """The README of a checkpoint."""
    millions = sum(p.numel() for p in nano.model.parameters()) / 1e6
    right = [said == x.turns[0].answer for x, said in zip(asked, answers, strict=True)]
    found, form = grades(asked, right), choices(asked, answers)
    rows = "\n".join(
        f"| {g.kind} | {g.n} | {100 * g.accuracy:.1f} % | {100 * g.chance:.1f} % |" for g in found
    )
    wanted = "\n".join(
        f"| {words} | {figure} | {'yes' if ok else 'NO'} |"
        for words, figure, ok in marks(c.family, found, form)
    )
    cost = "\n".join(
        f"| {name} | {getattr(c, f'{name}_steps')} | {s.loss:.3f} | {s.minutes:.0f} | "
        f"{s.cpu_seconds:.0f} |"
        for name, s in spent.items()
    )
    return f"""# nano {c.family}

{millions:.2f} M parameters in the real Hugging Face architecture, bf16, trained from scratch on
procedural scenes in four stages (`recipes/nano/README.md`). No similarity, correspondence, jigsaw,
depth or style question was trained.

    python recipes/nano/train_nano.py family={c.family}{settings(c)}

| must master | held out | passed |
|---|---:|---|
{wanted}

Held-out scenes (split test, questions about {c.exam} single pictures, {c.exam // 4} pairs,
{c.exam // 8} triples), greedy answers that equal the truth; chance = always giving the most
frequent answer; `pair_` questions are about one of several pictures:

| asked | n | right | chance |
|---|---:|---:|---:|
{rows}

Lettered choices: n {form.n}, unparsed {100 * form.unparsed:.1f} %, letters given
{json.dumps(form.given)}, letters true {json.dumps(form.true)}.

| stage | steps | last loss | minutes | CPU-seconds |
|---|---:|---:|---:|---:|
{cost}
"""
