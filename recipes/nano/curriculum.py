"""The four stages of a nano's training: what each draws, what it trains, what it is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from batches import Dealer, Lesson, lesson_loss
from dense import Heads, dense_loss, examine_dense
from drill import draw_drill, draw_listed, draw_recall
from exam import measure
from gallery import Gallery
from initial import take_language
from models import Nano
from pictures import draw_lesson
from raster import align_loss, examine_align
from stages import Stage
from told import RETOLD, draw_told
from torch import nn

from kvfix.bounds import check_numbers, number
from kvfix.runs.atomic import atomic_file

# What of the stages is run alone.
ONLY = {
    "": ("dense", "text", "align", "talk"),
    "dense": ("dense",),
    "text": ("text",),
}


@dataclass(frozen=True)
class Config:
    """train_nano.yaml, field by field."""

    family: str = "llava_onevision"
    out: str = ""
    states: str = ""
    seed: int = number(0, least=0)
    threads: int = number(1, least=1)
    warmup: int = number(100, least=1)
    weight_decay: float = number(0.05, least=0)
    dense_steps: int = number(7000, least=1)
    dense_batch: int = number(16, least=1)
    dense_lr: float = number(1.5e-3, above=0)
    gallery: int = number(12000, least=8)
    text_from: str = ""
    text_steps: int = number(2500, least=1)
    text_listed: int = number(300, least=0)
    text_easy: int = number(100, least=0)
    text_batch: int = number(8, least=1)
    text_lr: float = number(1e-3, above=0)
    align_steps: int = number(700, least=1)
    align_batch: int = number(32, least=1)
    align_lr: float = number(1e-3, above=0)
    align_read: float = number(0.1, least=0)
    talk_steps: int = number(2000, least=1)
    talk_batch: int = number(4, least=1)
    talk_lr: float = number(2e-4, above=0)
    turns: int = number(6, least=1)
    talk_ease: int = number(1, least=1)
    save_every: int = number(100, least=1)
    measure_every: int = number(500, least=1)
    held_out: int = number(80, least=1)
    stop_at: int = number(0, least=0)
    exam: int = number(300, least=1)
    only: str = ""

    def __post_init__(self) -> None:
        """Refuse what trains nothing.

        Raises:
            ValueError: a number out of its bounds, a gallery smaller than a batch, or a stage alone
                that needs another one.
        """
        check_numbers(self)
        largest = max(self.dense_batch, self.align_batch)
        if self.gallery < largest:
            raise ValueError(f"gallery: expected a batch ({largest}) or more, found {self.gallery}")
        if self.only not in ONLY:
            raise ValueError(f"only: expected dense or text, found {self.only!r}")


def _parameters(model: nn.Module, *, language: bool) -> dict[str, nn.Parameter]:
    """Those of the language model, or all others: tower, projector, newline."""
    return {n: p for n, p in model.named_parameters() if ("language_model" in n) == language}


def dense_stage(c: Config, nano: Nano, galleries: tuple[Gallery, Gallery]) -> Stage:
    """The tower labels cells; the heads are thrown away."""
    train, val = galleries
    width = nano.see(nano.model, train.batch(nano, 0, 1)[0]).shape[-1]
    heads = Heads(width)

    def loss(step: int) -> torch.Tensor:
        pixels, truth = train.batch(nano, step, c.dense_batch)
        return dense_loss(heads(nano.see(nano.model, pixels)), truth)

    return Stage(
        "dense",
        c.dense_steps,
        c.dense_lr,
        loss,
        lambda: examine_dense(nano, heads, val),
        {
            **_parameters(nano.model, language=False),
            **{f"heads.{name}": p for name, p in heads.named_parameters()},
        },
    )


LETTERED = 0.5  # weight of the letters of options beside questions about facts


def text_stage(c: Config, nano: Nano) -> Stage:
    """The language model finds letters of options, then answers about facts as well."""
    if c.text_from:
        take_language(nano.model, nano.processor.tokenizer, c.text_from)

    def drawn(raster: bool) -> Dealer:
        def draw(i: int, step: int) -> Lesson:
            easy = 2 * step < c.text_easy
            return draw_told("train", i, raster=raster, turns=c.turns, easy=easy, retold=RETOLD)

        return Dealer(draw, c.text_batch)

    def held_out(raster: bool) -> Callable[[], str]:
        lessons = [draw_told("val", i, raster=raster, turns=c.turns) for i in range(c.held_out)]
        return measure(nano, lessons, pooled=True)

    def loss(step: int) -> torch.Tensor:
        told = step - c.text_listed
        if told < 0:
            return lesson_loss(nano, listed.batch(step)) + lesson_loss(nano, recalls.batch(step))
        half, raster = divmod(told, 2)
        deck, number = drills, half  # every deck is dealt whole: its batches are sorted by length
        if not raster:
            deck, number = (listed, recalls)[half % 2], c.text_listed + half // 2
        lettered = lesson_loss(nano, deck.batch(number))
        return lesson_loss(nano, decks[raster].batch(half)) + LETTERED * lettered

    decks = (drawn(False), drawn(True))
    drills = Dealer(lambda i, step: draw_drill("train", i), 2 * c.text_batch)
    recalls = Dealer(lambda i, step: draw_recall("train", i), max(c.text_batch // 2, 1))
    listed = Dealer(lambda i, step: draw_listed("train", i), 3 * max(c.text_batch // 2, 1))
    measures = {
        "listed": measure(nano, [draw_listed("val", i) for i in range(max(c.held_out // 4, 1))]),
        "drills": measure(nano, [draw_drill("val", i) for i in range(2 * c.held_out)]),
        "in sentences": held_out(False),
        "in words of cells": held_out(True),
    }

    def figures() -> str:
        return "".join(f"\n  {name}: {measured()}" for name, measured in measures.items())

    return Stage(
        "text",
        c.text_steps,
        c.text_lr,
        loss,
        figures,
        _parameters(nano.model, language=True),
    )


def align_stage(c: Config, nano: Nano, galleries: tuple[Gallery, Gallery]) -> Stage:
    """Tower and projector learn to give each image token the words of its cell."""
    train, val = galleries
    return Stage(
        "align",
        c.align_steps,
        c.align_lr,
        lambda step: align_loss(nano, *train.batch(nano, step, c.align_batch), read=c.align_read),
        lambda: examine_align(nano, val),
        _parameters(nano.model, language=False),
    )


IMAGES = (1, 1, 2, 1, 1, 1, 3, 0)  # pictures of the conversations of each step, in turn; 0: told
UNTOLD = 2**39  # first index of told lessons that the second stage does not reach


def talk_stage(c: Config, nano: Nano) -> Stage:
    """Everything learns from questions about one to three pictures, and some told in words."""

    def drawn(images: int) -> Dealer:
        def draw(i: int, step: int) -> Lesson:
            if images == 0:
                return draw_told("train", UNTOLD + i, raster=False, turns=c.turns)
            ease = max(0.0, 1 - step * len(IMAGES) / IMAGES.count(images) / c.talk_ease)
            return draw_lesson("train", i, images=images, ease=ease, turns=c.turns)

        return Dealer(draw, c.talk_batch)

    decks = {images: drawn(images) for images in set(IMAGES)}

    def loss(step: int) -> torch.Tensor:
        turn, at = divmod(step, len(IMAGES))
        images = IMAGES[at]
        before = IMAGES[:at].count(images)
        return lesson_loss(nano, decks[images].batch(turn * IMAGES.count(images) + before))

    return Stage(
        "talk",
        c.talk_steps,
        c.talk_lr,
        loss,
        measure(nano, exam_lessons("val", c.held_out, c.turns)),
        dict(nano.model.named_parameters()),
    )


def exam_lessons(split: str, n: int, turns: int) -> list[Lesson]:
    """Of a split: n conversations about one picture, n / 4 about two, n / 8 about three."""
    many = {1: n, 2: n // 4, 3: n // 8}
    return [
        draw_lesson(split, i, images=k, ease=0, turns=turns)
        for k, m in many.items()
        for i in range(m)
    ]


def galleries_of(c: Config, states: Path) -> tuple[Gallery, Gallery]:
    """The pictures of the first stages, painted once and kept beside the states."""
    path = states / f"gallery-{c.gallery}.pt"
    if not path.exists():
        painted = Gallery("train", c.gallery), Gallery("val", max(c.gallery // 40, 8))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            torch.save(painted, stream)
    return torch.load(path, weights_only=False)  # our own file


def stages(c: Config, nano: Nano, states: Path) -> dict[str, Callable[[], Stage]]:
    """How to make each stage, in order; made when its turn comes, for pictures take time."""
    return {
        "dense": lambda: dense_stage(c, nano, galleries_of(c, states)),
        "text": lambda: text_stage(c, nano),
        "align": lambda: align_stage(c, nano, galleries_of(c, states)),
        "talk": lambda: talk_stage(c, nano),
    }
