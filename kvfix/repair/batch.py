"""Examples -> one padded batch: inputs, the rows whose next word counts, and what losses know.

Padding is on the right, where causal attention never looks. An example without images gets a small
black image AFTER its text, where causal attention does not look either: its text reads nothing of
it, and every rank runs the vision tower in every step.

Shapes: B samples, L positions, R rows (flat positions b * L + l), O options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kvfix.data.training.examples import Example
from kvfix.data.units import Question
from kvfix.eval.mcq.options import answer_gap, option_tokens
from kvfix.mlm.families import Family
from kvfix.mlm.layout import Layout
from kvfix.mlm.prompts import Encoded, layouts_of, model_inputs, spans_of
from kvfix.repair.chat import Chat, render
from kvfix.repair.extras import Choice, Extras, extras_of

STAND_IN = Image.new("RGB", (56, 56))


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch of one rank."""

    encoded: Encoded  # inputs and image spans
    rows_R: Tensor  # positions that predict a token of text, ascending
    target_R: Tensor  # the tokens that they should predict
    answer_R: Tensor  # bool, the token belongs to an answer (its end token included)
    text_R: Tensor  # bool, it is other text
    extras: tuple[Extras, ...]  # one entry per sample
    n_tokens: int  # without padding
    n_images: int  # without stand-ins

    def moved(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On a device, floating inputs in the model's dtype."""
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.encoded.inputs.items()
        }
        return replace(
            self,
            encoded=replace(self.encoded, inputs=inputs),
            rows_R=self.rows_R.to(device),
            target_R=self.target_R.to(device),
        )


@dataclass(frozen=True)
class Collator:
    """Examples -> `Batch`, on the CPU, also in a loader's worker.

    With `choices` it finds the option letters of questions, which some losses need.
    """

    processor: Any
    config: Any
    family: Family
    choices: bool = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Render, tokenise, lay out and label; an example that cannot be printed is refused."""
        self._check(examples)
        chats = [render(example, self.processor) for example in examples]
        images = [list(example.images) or [STAND_IN] for example in examples]
        batch = self.processor(
            text=[chat.text for chat in chats],
            images=images,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=self._adds_special(chats[0].text),
        )
        inputs = model_inputs(batch)
        layouts = layouts_of(
            images, inputs, processor=self.processor, config=self.config, family=self.family
        )
        spans = spans_of(inputs["input_ids"], layouts, image_token_id=self.config.image_token_id)
        tokens = [
            self._tokens(example, chat, of, ids_L[mask_L.bool()])
            for example, chat, of, ids_L, mask_L in zip(
                examples, chats, layouts, inputs["input_ids"], inputs["attention_mask"], strict=True
            )
        ]
        if self.family.sees_ahead == "prompt":
            _hide_answers(inputs, tokens)
        encoded = Encoded(
            inputs,
            spans,
            torch.tensor([t.user_end for t in tokens]),
            tuple(chat.text for chat in chats),
        )
        length = inputs["input_ids"].shape[1]
        rows_R = torch.cat([torch.from_numpy(t.rows) + b * length for b, t in enumerate(tokens)])
        answer_R = torch.from_numpy(np.concatenate([t.answer for t in tokens]))
        return Batch(
            encoded=encoded,
            rows_R=rows_R,
            target_R=inputs["input_ids"].flatten()[rows_R + 1],
            answer_R=answer_R,
            text_R=~answer_R,
            extras=tuple(self._extras(examples, chats, tokens, layouts)),
            n_tokens=int(inputs["attention_mask"].sum()),
            n_images=sum(len(example.images) for example in examples),
        )

    def _check(self, examples: Sequence[Example]) -> None:
        """A text that sees all of its prompt would see a stand-in, too."""
        bare = [e.id for e in examples if not e.images and self.family.sees_ahead == "prompt"]
        if bare:
            raise ValueError(
                f"{bare[0]}: expected an example with an image for {self.family.model_type}, whose "
                "text attends to all of its prompt, found one without; leave out such examples"
            )

    @cached_property
    def _gap(self) -> str:
        """The same for every question, and two renderings of the template."""
        return answer_gap(self.processor)

    def _adds_special(self, text: str) -> bool:
        """As the processor's own chat rendering decides it."""
        bos = self.processor.tokenizer.bos_token
        return not (bos is not None and text.startswith(bos))

    def _tokens(
        self, example: Example, chat: Chat, layouts: Sequence[Layout], ids_L: Tensor
    ) -> _Tokens:
        """Where the text's tokens are among a sample's, image placeholders expanded."""
        text, put = self._expanded(chat.text, layouts)
        found = self.processor.tokenizer(
            text,
            return_offsets_mapping=True,
            add_special_tokens=self._adds_special(chat.text),
        )
        ids = ids_L.numpy()
        if len(found["input_ids"]) != len(ids) or (np.array(found["input_ids"]) != ids).any():
            raise ValueError(
                f"{example.id}: expected the processor's tokens to be the tokenizer's with images "
                f"expanded, found {len(ids)} and {len(found['input_ids'])} tokens"
            )
        start, stop = np.array(found["offset_mapping"]).T
        kept = np.flatnonzero(~put.holds(start, stop))
        start, stop = put.before(start[kept]), put.before(stop[kept])
        answered = np.zeros(len(kept), bool)
        special = set(self.processor.tokenizer.all_special_ids)
        for first, last in chat.answers:
            inside = np.flatnonzero((start >= first) & (stop <= last) & (stop > start))
            ends = [i for i in inside if int(ids[kept[i]]) in special]
            # What a template prints after the end token (a line break) is not the answer.
            answered[inside if not ends else inside[inside <= ends[-1]]] = True
        # A token may be predicted from the second on; a stand-in's marks come after the text.
        wanted = (kept > 0) & (start < chat.end)
        ended = np.flatnonzero((start < chat.user_end) & (stop > start))
        return _Tokens(kept[wanted] - 1, answered[wanted], int(kept[ended[-1]]))

    def _expanded(self, text: str, layouts: Sequence[Layout]) -> tuple[str, _Put]:
        """What the processor makes of a rendered text, and where in it that stands."""
        first, *rest = text.split(self.processor.image_token)
        images = [self.family.expand(self.processor, layout) for layout in layouts]
        starts, long = [], first
        for image, after in zip(images, rest, strict=True):
            starts.append(len(long))
            long += image + after
        lengths = np.array([len(image) for image in images])
        return long, _Put(np.array(starts), lengths, len(self.processor.image_token))

    def _extras(
        self,
        examples: Sequence[Example],
        chats: Sequence[Chat],
        tokens: Sequence[_Tokens],
        layouts: Sequence[Sequence[Layout]],
    ) -> Iterator[Extras]:
        first_row = 0
        for example, chat, at, of in zip(examples, chats, tokens, layouts, strict=True):
            choice = None
            if self.choices and example.question is not None:
                choice = self._choice(example.question, chat, at, first_row)
            yield extras_of(example, of, choice)
            first_row += len(at.rows)

    def _choice(self, question: Question, chat: Chat, at: _Tokens, first_row: int) -> Choice:
        """The row that predicts the letter: the first token in which the options differ."""
        [options] = option_tokens(
            [chat.asked],
            [len(question.choices)],
            form="(A)",
            gap=self._gap,
            tokenizer=self.processor.tokenizer,
        )
        differs = next(i for i, ids in enumerate(zip(*options, strict=False)) if len(set(ids)) > 1)
        answer = np.flatnonzero(at.answer)
        letters_O = torch.tensor([option[differs] for option in options])
        return Choice(first_row + int(answer[differs]), letters_O)


class _Put(NamedTuple):
    """What stands in a text for placeholders: where each begins, its length, a placeholder's."""

    starts: np.ndarray
    lengths: np.ndarray
    placeholder: int

    def holds(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Whether tokens with these ends are of an image."""
        ends = self.starts + self.lengths
        return ((start[:, None] < ends) & (stop[:, None] > self.starts)).any(1)

    def before(self, at: np.ndarray) -> np.ndarray:
        """Positions of text outside images, as they were in the text with placeholders."""
        longer = np.concatenate(([0], np.cumsum(self.lengths - self.placeholder)))
        return at - longer[np.searchsorted(self.starts, at, side="left")]


class _Tokens(NamedTuple):
    """Of one sample: rows that predict text, which of them an answer, the user's last token."""

    rows: np.ndarray
    answer: np.ndarray
    user_end: int


def _hide_answers(inputs: dict[str, Tensor], tokens: Sequence[_Tokens]) -> None:
    """Answers and what follows are no part of a prompt: no earlier token may see them."""
    for b, of in enumerate(tokens):
        if of.answer.any():
            inputs["token_type_ids"][b, int(of.rows[of.answer][0]) + 1 :] = 1
