"""What a nano learns from: batches of scene conversations, and held-out questions that grade it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from nano_models import PATCH, SIDE, Nano
from PIL import Image

from kvfix.data.scenes import Scene, generator, render, sample_scene
from kvfix.data.talk import COLUMNS, ROWS, Turn, conversation, pair_conversation

IGNORE = -100  # label of a position that is not learned


class Lesson(NamedTuple):
    """One conversation about one or two images."""

    images: list[Image.Image]
    turns: list[Turn]


def draw_lesson(split: str, index: int, *, pair: bool, ease: float, turns: int) -> Lesson:
    """Lesson `index` of a split; `ease` in [0, 1] starts with single large objects (1) and ends at
    0.
    """
    rng = generator(split, index, "lesson")
    most = 1 + round((1 - ease) * 3)
    low = 2 if ease == 0 and rng.random() < 0.9 else 1
    if pair:
        scenes = [sample_scene(rng, count=(1, min(most, 2)), radius=(0.14, 0.24)) for _ in "12"]
        return Lesson([render(s).image for s in scenes], pair_conversation(scenes, rng))
    scene: Scene = sample_scene(rng, count=(low, most), radius=(0.12, 0.2 + 0.12 * ease))
    return Lesson([render(scene).image], conversation(scene, rng, turns=turns))


def messages(lesson: Lesson) -> list[dict[str, Any]]:
    """The lesson in chat form, question after answer, images first."""
    out: list[dict[str, Any]] = []
    for i, turn in enumerate(lesson.turns):
        content: list[dict[str, str]] = [{"type": "text", "text": turn.question}]
        if i == 0:
            content = [{"type": "image"}] * len(lesson.images) + content
        out.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": turn.answer}]
        out.append({"role": "assistant", "content": answer})
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
    """Lessons -> model inputs with labels, through the family's own processor."""
    texts = [nano.processor.apply_chat_template(messages(x)) for x in lessons]
    images = [x.images for x in lessons]
    batch = dict(nano.processor(text=texts, images=images, return_tensors="pt", padding=True))
    tok = nano.processor.tokenizer
    opener = tok(nano.dialect.opener, add_special_tokens=False)["input_ids"]
    batch["labels"] = answer_labels(batch["input_ids"], opener, tok.eos_token_id)
    return batch


class Gallery:
    """Scenes of the first stage, painted and preprocessed once, with the words of every cell.

    The words of a cell are shares x words: how much of it each object covers, times the words of
    that object. Both are kept apart, since their product would fill the memory.

    Args:
        nano: gives processor and vocabulary.
        n: scenes; drawn again and again in shuffled passes.
    """

    def __init__(self, nano: Nano, n: int):
        """Paint and preprocess, 64 scenes at a time."""
        parts, shares, words = [], [], []
        for start in range(0, n, 64):
            images = []
            for index in range(start, min(start + 64, n)):
                rng = generator("train", index, "naming")
                scene = sample_scene(rng, count=(1, 4), radius=(0.12, 0.26))
                picture = render(scene)
                images.append(picture.image)
                shares.append(cell_shares(picture.instance_HW).half())
                words.append(thing_words(nano, scene).half())
            pixels = nano.processor.image_processor(images, return_tensors="pt")
            parts.append(nano.crop(dict(pixels)))
        self.n = n
        self.rows = parts[0]["pixel_values"].shape[0] // min(64, n)  # Qwen: patches an image
        self.pixels = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        self.shares_NCT, self.words_NTV = torch.stack(shares), torch.stack(words)
        self.places_CV = place_words(nano)

    def batch(self, step: int, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pixels and (B, cells, vocabulary) targets of a step."""
        passes = self.n // size
        order = np.random.default_rng([step // passes, 1]).permutation(self.n)
        chosen = order[(step % passes) * size :][:size]
        rows = (chosen[:, None] * self.rows + np.arange(self.rows)).reshape(-1)
        take = {"pixel_values": rows, "image_grid_thw": chosen}
        pixels = {name: kept[take[name]].to(_full(kept)) for name, kept in self.pixels.items()}
        target = self.shares_NCT[chosen].float() @ self.words_NTV[chosen].float()
        return pixels, target + (1 - target.sum(-1, keepdim=True)) * self.places_CV


def _full(kept: torch.Tensor) -> torch.dtype:
    return torch.float32 if kept.is_floating_point() else kept.dtype


def naming_loss(nano: Nano, pixels: dict[str, torch.Tensor], words: torch.Tensor) -> torch.Tensor:
    """First stage: every image token, read by the LM's own word table, names what its cell shows.

    Cross entropy to the word distribution of each cell, mean over cells, nats.
    """
    cells_BNC = nano.look(nano.model, pixels)
    logits = cells_BNC @ nano.model.get_input_embeddings().weight.T
    return -(words * logits.float().log_softmax(-1)).sum(-1).mean()


def cell_shares(instance_HW: np.ndarray, most: int = 5) -> torch.Tensor:
    """(cells, most): how much of each cell shows the ground, the first object, the second, ..."""
    side = SIDE // PATCH
    size = instance_HW.shape[0]
    of_HWT = torch.from_numpy(instance_HW[..., None] == np.arange(most)).float()
    return of_HWT.view(side, size // side, side, size // side, most).mean((1, 3)).flatten(0, 1)


def thing_words(nano: Nano, scene: Scene, most: int = 5) -> torch.Tensor:
    """(most, vocabulary): the words of ground (1/3) and objects (3/5); the rest is the place's."""
    names = [("image",), *((t.colour, t.texture, t.shape) for t in scene.things)]
    out_TV = torch.zeros(most, len(nano.processor.tokenizer))
    for row_V, words in zip(out_TV, names, strict=False):
        for word in words:
            row_V += _word(nano, word) / (len(words) + 2)
    return out_TV


def place_words(nano: Nano) -> torch.Tensor:
    """(cells, vocabulary): row and column of each cell, rows summing to 1."""
    side = SIDE // PATCH
    third = [(i * 3 + 1) // side for i in range(side)]
    rows, columns = (torch.stack([_word(nano, w) for w in words]) for words in (ROWS, COLUMNS))
    return (rows[third][:, None] + columns[third][None]).flatten(0, 1) / 2


def _word(nano: Nano, word: str) -> torch.Tensor:
    """(vocabulary,) summing to 1: a word as sentences hold it, with and without a space before."""
    tok = nano.processor.tokenizer
    forms = [tok.encode(form, add_special_tokens=False) for form in (word, " " + word)]
    whole = [form[0] for form in forms if len(form) == 1]
    out_V = torch.zeros(len(tok))
    out_V[whole] = 1 / len(whole)
    return out_V


class Grade(NamedTuple):
    """Held-out answers of one kind of question."""

    kind: str
    n: int
    accuracy: float  # share of answers that equal the truth, [0, 1]
    chance: float  # accuracy of always giving the most frequent true answer


@torch.inference_mode()
def examine(
    nano: Nano, *, n: int, split: str = "test", batch: int = 32
) -> tuple[list[Grade], dict]:
    """Ask every question of `n` held-out lessons and of `n // 4` about two images; greedy answers.

    Returns:
        a grade a kind, and the multiple-choice format: unparsed rate, letters given, letters true.
    """
    lessons = [draw_lesson(split, i, pair=False, ease=0.0, turns=7) for i in range(n)]
    lessons += [draw_lesson(split, n + i, pair=True, ease=0.0, turns=7) for i in range(n // 4)]
    # One kind after the other: short answers need not wait for captions.
    asked = [Lesson(x.images, [turn]) for x in lessons for turn in x.turns]
    asked.sort(key=lambda x: x.turns[0].kind)
    said: dict[str, list[tuple[str, str]]] = {}
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        for lesson, text in zip(part, _answers(nano, part), strict=True):
            [turn] = lesson.turns
            said.setdefault(turn.kind, []).append((text, turn.answer))
    grades = []
    for kind, pairs in said.items():
        truths = [t for _, t in pairs]
        top = max(truths.count(t) for t in set(truths)) / len(truths)
        right = float(np.mean([a == t for a, t in pairs]))
        grades.append(Grade(kind, len(pairs), right, top))
    return grades, _format_report(said["choice"] + said.get("pair_choice", []))


def _answers(nano: Nano, lessons: list[Lesson]) -> list[str]:
    """The model's own answers to the first question of each lesson."""
    tok = nano.processor.tokenizer
    texts = [
        nano.processor.apply_chat_template(messages(x)[:1], add_generation_prompt=True)
        for x in lessons
    ]
    tok.padding_side = "left"
    images = [x.images for x in lessons]
    inputs = nano.processor(text=texts, images=images, return_tensors="pt", padding=True)
    tok.padding_side = "right"
    out_BL = nano.model.generate(**inputs, max_new_tokens=72, do_sample=False)
    new_BL = out_BL[:, inputs["input_ids"].shape[1] :]
    return [t.strip() for t in tok.batch_decode(new_BL, skip_special_tokens=True)]


def _format_report(pairs: list[tuple[str, str]]) -> dict:
    letters = ["(A)", "(B)", "(C)", "(D)"]
    given = {x: sum(a == x for a, _ in pairs) for x in letters}
    return {
        "n": len(pairs),
        "unparsed": 1 - sum(given.values()) / len(pairs),
        "given": given,
        "true": {x: sum(t == x for _, t in pairs) for x in letters},
    }
