"""Lessons as model inputs whose labels are the answers: every question is asked alone.

What the questions of a lesson are about stands once in a row, then question after question, each
of which sees what stands first, and itself. That is what single questions would give, for the
price of a conversation.

Shapes: B rows, L tokens of a row, S tokens that its questions share, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import torch
from gallery import Labels
from models import CELLS, Nano
from PIL import Image
from raster import sketch, words_of
from turns import Shown

from kvfix.data.scenes.talk import Turn

IGNORE = -100  # label of a position that is not learned


class Lesson(NamedTuple):
    """Questions about the same thing.

    Attributes:
        images: Pictures, first of all.
        turns: Questions and answers.
        facts: Words in place of pictures.
        raster: Scenes whose cells' words, added up, stand in place of image tokens.
    """

    images: list[Image.Image]
    turns: list[Turn]
    facts: str = ""
    raster: tuple[Shown, ...] = ()


def messages(nano: Nano, lesson: Lesson, turn: Turn) -> list[dict[str, Any]]:
    """One question of a lesson and its answer in chat form, images first."""
    image = nano.dialect.image
    told = f"{lesson.facts}\n" if lesson.facts else ""
    told += nano.dialect.markup.replace(image, image * CELLS) * len(lesson.raster)
    pictures = [{"type": "image"}] * len(lesson.images)
    content = [*pictures, {"type": "text", "text": told + turn.question}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
    ]


class Asked(NamedTuple):
    """One question of a row, with what it is about."""

    ids: list[int]
    answer: int  # where its answer begins


def collate(nano: Nano, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
    """Lessons of one kind -> model inputs with labels, through the family's own processor."""
    texts = [
        [nano.processor.apply_chat_template(messages(nano, x, turn)) for turn in x.turns]
        for x in lessons
    ]
    tok, image_id = nano.processor.tokenizer, nano.model.config.image_token_id
    inputs: dict[str, torch.Tensor] = {}
    runs: list[list[int]] = [[1] * (CELLS * len(x.raster)) for x in lessons]
    if lessons[0].images:
        images, first = [x.images for x in lessons], [t[0] for t in texts]
        inputs = dict(nano.processor(text=first, images=images, return_tensors="pt", padding=True))
        runs = [_runs(ids, image_id) for ids in inputs.pop("input_ids").tolist()]
        for name in ("attention_mask", "mm_token_type_ids"):
            inputs.pop(name, None)
    opener = tok(nano.dialect.opener, add_special_tokens=False)["input_ids"]
    rows = []
    for asked, run in zip(texts, runs, strict=True):
        tokens = tok(asked, add_special_tokens=False)["input_ids"]
        rows.append(
            [_asked(_widened(ids, image_id, run), opener, tok.eos_token_id) for ids in tokens]
        )
    inputs |= _rows(nano, rows)
    if lessons[0].raster:
        with_raster(nano, inputs, lessons)
    return inputs


def _runs(ids: list[int], image_id: int) -> list[int]:
    """How many tokens each image has."""
    return [len([*run]) for of_image, run in groupby(ids, lambda i: i == image_id) if of_image]


def _widened(ids: list[int], image_id: int, runs: list[int]) -> list[int]:
    """The ids with every image's one token as often as its run is long."""
    left = iter(runs)
    return [i for token in ids for i in [token] * (next(left) if token == image_id else 1)]


def _asked(ids: list[int], opener: list[int], end: int) -> Asked:
    """Up to the end token of the answer, which begins after `opener`."""
    k = len(opener)
    answer = k + next(i for i in range(len(ids)) if ids[i : i + k] == opener)
    return Asked(ids[: ids.index(end, answer) + 1], answer)


def _rows(nano: Nano, rows: list[list[Asked]]) -> dict[str, torch.Tensor]:
    """Ids, positions, labels, and which token sees which.

    Padding is on the right, where causal attention never looks; where every row holds one question,
    there is no mask, for without one it runs faster.
    """
    shared = [_shared(row) for row in rows]
    length = max(s + sum(len(a.ids) - s for a in row) for s, row in zip(shared, rows, strict=True))
    ids_BL = torch.full((len(rows), length), nano.processor.tokenizer.pad_token_id)
    labels_BL = torch.full_like(ids_BL, IGNORE)
    of_BL = torch.zeros_like(ids_BL)  # number of the question, from 1; 0: shared
    for ids_L, row, s in zip(ids_BL, rows, shared, strict=True):
        ids_L[:s] = torch.tensor(row[0].ids[:s])
    places = nano.places(nano.model, ids_BL[:, : max(shared)])
    places_BL = places.new_zeros(*places.shape[:-1], length)
    places_BL[..., : max(shared)] = places
    for b, (row, s) in enumerate(zip(rows, shared, strict=True)):
        at, after = s, places[..., b, s - 1].amax() + 1
        for number, asked in enumerate(row, 1):
            here = slice(at, at := at + len(asked.ids) - s)
            ids_BL[b, here] = own_L = torch.tensor(asked.ids[s:])
            of_BL[b, here] = number
            places_BL[..., b, here] = after + torch.arange(len(own_L))
            answer = slice(here.start + asked.answer - s, at)
            labels_BL[b, answer] = own_L[asked.answer - s :]
    inputs = {"input_ids": ids_BL, "position_ids": places_BL, "labels": labels_BL}
    if max(map(len, rows)) > 1:
        inputs["attention_mask"] = _sight(of_BL)
    return inputs


def _shared(row: list[Asked]) -> int:
    """How many first tokens all questions share; the last before an answer is each one's own."""
    most = min(asked.answer for asked in row) - 1
    return next((i for i in range(most) if len({asked.ids[i] for asked in row}) > 1), most)


def _sight(of_BL: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L) to be added to attention's logits: 0 where a token sees another."""
    of_BL1, of_B1L = of_BL[..., None], of_BL[:, None]
    sees = ((of_BL1 == of_B1L) | (of_B1L == 0)).tril()
    least = torch.finfo(torch.float32).min
    return torch.zeros(sees.shape).masked_fill(~sees, least)[:, None]


def with_raster(nano: Nano, inputs: dict[str, torch.Tensor], lessons: list[Lesson]) -> None:
    """Replace the ids by embeddings, those of image tokens by the sums of their cells' words."""
    table_VD = nano.model.get_input_embeddings().weight
    ids_BL = inputs.pop("input_ids")
    sketches = [sketch(shown) for x in lessons for shown in x.raster]
    truth = Labels(*(torch.cat(part) for part in zip(*sketches, strict=True)))
    cells_ND = (words_of(nano).of(truth) @ table_VD).flatten(0, 1)
    at_BL1 = (ids_BL == nano.model.config.image_token_id)[..., None]
    inputs["inputs_embeds"] = table_VD[ids_BL].masked_scatter(at_BL1, cells_ND.to(table_VD.dtype))


def lesson_loss(nano: Nano, lessons: list[Lesson]) -> torch.Tensor:
    """Answer loss of one batch, nats a token."""
    return nano.model(**collate(nano, lessons), use_cache=False).loss


class Dealer:
    """Batches of lessons of one kind, alike in length: padding is time.

    Args:
        draw: Index and step of the training -> lesson.
        size: Lessons of a batch.
        hands: Batches that are drawn together, sorted by length and dealt.
    """

    def __init__(self, draw: Callable[[int, int], Lesson], size: int, hands: int = 4):
        """Nothing is drawn yet."""
        self.draw, self.size, self.hands = draw, size, hands
        self.round, self.lessons = -1, list[Lesson]()

    def batch(self, step: int) -> list[Lesson]:
        """The batch of a step; the same whatever was drawn before."""
        number, hand = divmod(step, self.hands)
        if number != self.round:
            first = number * self.hands * self.size
            lessons = [self.draw(first + i, step - hand) for i in range(self.hands * self.size)]
            self.round, self.lessons = number, sorted(lessons, key=_length)
        return self.lessons[hand * self.size :][: self.size]


def _length(lesson: Lesson) -> int:
    """About as many letters as a row is long; pictures count alike."""
    spoken = sum(len(t.question) + len(t.answer) for t in lesson.turns)
    return 500 * (len(lesson.images) + len(lesson.raster)) + len(lesson.facts) + spoken
