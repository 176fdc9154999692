"""Conversations as model inputs whose labels are the answers."""

from __future__ import annotations

from collections.abc import Callable
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
    """One conversation: pictures, or what stands in their place.

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


def messages(nano: Nano, lesson: Lesson) -> list[dict[str, Any]]:
    """The lesson in chat form, question after answer, images first."""
    out: list[dict[str, Any]] = []
    image = nano.dialect.image
    told = f"{lesson.facts}\n" if lesson.facts else ""
    told += nano.dialect.markup.replace(image, image * CELLS) * len(lesson.raster)
    for i, turn in enumerate(lesson.turns):
        text = told + turn.question if i == 0 else turn.question
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        if i == 0:
            content = [{"type": "image"}] * len(lesson.images) + content
        out.append({"role": "user", "content": content})
        out.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return out


def answer_labels(ids_BL: torch.Tensor, opener: list[int], end: int) -> torch.Tensor:
    """Labels that keep answers and their end token: what follows `opener` up to and with `end`."""
    labels_BL = torch.full_like(ids_BL, IGNORE)
    k = len(opener)
    starts_BL = ids_BL.unfold(1, k, 1).eq(torch.tensor(opener)).all(-1)
    for b, start in starts_BL.nonzero().tolist():
        stop = start + k + int(ids_BL[b, start + k :].eq(end).nonzero()[0])
        labels_BL[b, start + k : stop + 1] = ids_BL[b, start + k : stop + 1]
    return labels_BL


def collate(nano: Nano, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
    """Lessons of one kind -> model inputs with labels, through the family's own processor.

    Padding is on the right, where causal attention never looks, so no mask is needed: without one
    it runs faster.
    """
    texts = [nano.processor.apply_chat_template(messages(nano, x)) for x in lessons]
    tok = nano.processor.tokenizer
    if lessons[0].images:
        images = [x.images for x in lessons]
        batch = dict(nano.processor(text=texts, images=images, return_tensors="pt", padding=True))
    else:
        batch = dict(tok(texts, return_tensors="pt", padding=True, add_special_tokens=False))
    del batch["attention_mask"]
    opener = tok(nano.dialect.opener, add_special_tokens=False)["input_ids"]
    batch["labels"] = answer_labels(batch["input_ids"], opener, tok.eos_token_id)
    if lessons[0].raster:
        with_raster(nano, batch, lessons)
    return batch


def with_raster(nano: Nano, batch: dict[str, torch.Tensor], lessons: list[Lesson]) -> None:
    """Replace the ids by embeddings, those of image tokens by the sums of their cells' words."""
    table_VD = nano.model.get_input_embeddings().weight
    ids_BL = batch.pop("input_ids")
    sketches = [sketch(shown) for x in lessons for shown in x.raster]
    truth = Labels(*(torch.cat(part) for part in zip(*sketches, strict=True)))
    cells_ND = (words_of(nano).of(truth) @ table_VD).flatten(0, 1)
    at_BL1 = (ids_BL == nano.model.config.image_token_id)[..., None]
    batch["inputs_embeds"] = table_VD[ids_BL].masked_scatter(at_BL1, cells_ND.to(table_VD.dtype))


def lesson_loss(nano: Nano, lessons: list[Lesson]) -> torch.Tensor:
    """Answer loss of one batch of conversations, nats a token."""
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
    """About as many letters as a conversation is long; pictures count alike."""
    spoken = sum(len(t.question) + len(t.answer) for t in lesson.turns)
    return 500 * (len(lesson.images) + len(lesson.raster)) + len(lesson.facts) + spoken
