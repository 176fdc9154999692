"""Held-out questions that grade a nano, asked one at a time.

Between stages the answers are checked without writing them: a greedy answer equals the truth if and
only if every token of the truth is the likeliest after those before it. The card's exam writes.

Shapes: B questions, L tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from batches import IGNORE, Lesson, collate, messages
from models import Nano

from kvfix.data.scenes.talk import Turn
from kvfix.mlm.native import has_bfloat16


class Grade(NamedTuple):
    """Held-out answers of one kind of question."""

    kind: str
    n: int
    accuracy: float  # share of answers that equal the truth, [0, 1]
    chance: float  # accuracy of always giving the most frequent true answer


class Choices(NamedTuple):
    """How the multiple-choice format is mastered."""

    n: int
    unparsed: float  # share of answers that are no option's letter, [0, 1]
    given: dict[str, int]  # letter -> how often the model gave it
    true: dict[str, int]


LETTERS = ("(A)", "(B)", "(C)", "(D)")


def single_questions(lessons: list[Lesson]) -> list[Lesson]:
    """Every turn as a conversation of its own, of one kind after the other."""
    asked = [x._replace(turns=[turn]) for x in lessons for turn in x.turns]
    return sorted(asked, key=lambda x: (len(x.images), len(x.raster), x.turns[0].kind))


def _parts(asked: list[Lesson], size: int) -> Iterator[list[Lesson]]:
    """Batches whose conversations all have as many pictures as the first."""
    part: list[Lesson] = []
    for lesson in asked:
        first = part[0] if part else lesson
        alike = len(lesson.images) == len(first.images) and bool(lesson.raster) == bool(
            first.raster
        )
        if len(part) == size or not alike:
            yield part
            part = []
        part.append(lesson)
    if part:
        yield part


def grades(asked: list[Lesson], right: list[bool]) -> list[Grade]:
    """One grade a kind, by name; choices by their number of options too."""
    of: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for lesson, ok in zip(asked, right, strict=True):
        [turn] = lesson.turns
        of[turn.kind].append((ok, turn.answer))
        if "choice_" in turn.kind:
            n = turn.question.count("\n(")
            of[f"choices of {n}"].append((ok, turn.answer))
    out = []
    for kind, rows in sorted(of.items()):
        truths = [t for _, t in rows]
        top = max(truths.count(t) for t in set(truths)) / len(truths)
        out.append(Grade(kind, len(rows), float(np.mean([ok for ok, _ in rows])), top))
    return out


@torch.inference_mode()
def foreseen(nano: Nano, asked: list[Lesson], *, batch: int = 32) -> list[bool]:
    """Whether the greedy answer to each single question would equal the truth."""
    right: list[bool] = []
    for part in _parts(asked, batch):
        inputs = collate(nano, part)
        labels_BL = inputs.pop("labels")[:, 1:]
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            said_BL = nano.model(**inputs, use_cache=False).logits[:, :-1].argmax(-1)
        right += ((said_BL == labels_BL) | (labels_BL == IGNORE)).all(1).tolist()
    return right


@torch.inference_mode()
def written(nano: Nano, asked: list[Lesson], *, batch: int = 32) -> list[str]:
    """The model's own greedy answer to each single question."""
    tok, answers = nano.processor.tokenizer, []
    for part in _parts(asked, batch):
        texts = [
            nano.processor.apply_chat_template(
                messages(nano, x, x.turns[0])[:1], add_generation_prompt=True
            )
            for x in part
        ]
        tok.padding_side = "left"
        images = [x.images for x in part]
        inputs = nano.processor(text=texts, images=images, return_tensors="pt", padding=True)
        tok.padding_side = "right"
        out_BL = nano.model.generate(**inputs, max_new_tokens=72, do_sample=False)
        new_BL = out_BL[:, inputs["input_ids"].shape[1] :]
        answers += [t.strip() for t in tok.batch_decode(new_BL, skip_special_tokens=True)]
    return answers


def choices(asked: list[Lesson], answers: list[str]) -> Choices:
    """The format report over all lettered questions."""
    pairs = [
        (said, x.turns[0].answer)
        for x, said in zip(asked, answers, strict=True)
        if "choice_" in x.turns[0].kind
    ]
    given = {x: sum(said == x for said, _ in pairs) for x in LETTERS}
    true = {x: sum(t == x for _, t in pairs) for x in LETTERS}
    return Choices(len(pairs), 1 - sum(given.values()) / max(len(pairs), 1), given, true)


def measure(nano: Nano, lessons: list[Lesson], *, pooled: bool = False) -> Callable[[], str]:
    """A stage's held-out measure: percent right beside chance, a kind after the other.

    Args:
        nano: Who is asked.
        lessons: Their turns are asked one at a time.
        pooled: Only choices by their number of options, drills, captions, and all that is free.
    """
    asked = single_questions(lessons)
    if pooled:
        asked = [x._replace(turns=[_pooled(x.turns[0])]) for x in asked]

    def figures() -> str:
        found = grades(asked, foreseen(nano, asked))
        if pooled:
            found = [g for g in found if g.kind != "choice_"]
        rows = [f"{g.kind} {100 * g.accuracy:.0f} ({100 * g.chance:.0f}, n {g.n})" for g in found]
        return "% right (chance): " + ", ".join(rows)

    return figures


def _pooled(turn: Turn) -> Turn:
    """The turn as one of few kinds."""
    kind = turn.kind.removeprefix("pair_")
    if kind.startswith("choice_"):
        return turn._replace(kind="choice_")
    return turn._replace(kind=kind if kind == "caption" or kind.startswith("drill") else "free")
