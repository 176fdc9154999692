"""`kvfix data check train=FILE`: all that training would look at, without a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvfix.data.training.conversation import Conversation
from kvfix.data.training.dataset import MOST_BAD, BadLine, Conversations, read_conversations
from kvfix.data.training.examples import Turn, from_conversation, turns_of
from kvfix.data.training.verify import verify
from kvfix.repair.batch import Collator
from kvfix.repair.proof import Proof, collator_of
from kvfix.session import Watch

MOST_TEXT = 1500  # characters of one text of the example that is shown


class Checked(NamedTuple):
    """What was found."""

    lines: Conversations  # the records that can be trained on; those that cannot are in its `bad`
    # The first of them as the model, or a reader, sees it; empty if there is none.
    example: list[str]

    @property
    def bad(self) -> tuple[BadLine, ...]:
        """The records that training leaves out."""
        return self.lines.bad

    @property
    def too_many(self) -> bool:
        """Whether training would refuse the data for the number of its bad records."""
        total = len(self.lines) + len(self.bad)
        return not self.lines or len(self.bad) > MOST_BAD * total

    def summary(self) -> str:
        """How many there are of each form, and what training does with them."""
        total = len(self.lines) + len(self.bad)
        forms = ", ".join(f"{n} of form {name}" for name, n in self.lines.forms) or "none read"
        unit = self.lines.records.unit
        said = f"{self.lines.name}: {total} {unit if total == 1 else _plural(unit)}, {forms}"
        if not self.bad:
            return f"{said}; all can be trained on"
        if self.too_many:
            return f"{said}; {len(self.bad)} bad, and training refuses more than {MOST_BAD:.0%}"
        return f"{said}; training leaves {len(self.bad)} out"


def check_training(
    source: str,
    *,
    images: Path | None,
    model: str | None,
    processor: str | None,
    watch: Watch,
) -> Checked:
    """Read every record and decode every picture; `model` None: no model is asked."""
    collator = None if model is None else collator_of(model, processor)
    watch.say(f"reading {source}")
    lines = read_conversations(source, images=images, most_bad=1.0)
    with watch.phase("decoding pictures", len(lines)) as tick:
        if collator is None:
            bad = verify(lines, tick=tick)
        else:
            bad = verify(lines, look=Proof(collator), tick=tick)
    kept = lines.without(bad, most_bad=1.0)
    if not kept:
        return Checked(kept, [])
    first = kept[0]
    return Checked(kept, list(_read(first) if collator is None else _seen(first, collator)))


def _read(line: Conversation) -> Iterator[str]:
    """A conversation for a reader."""
    for message in line.messages:
        note = "" if message.learned else " (not trained on)"
        yield f"{message.role}{note}: {_shown(message.content)}"
    for number, photo in enumerate(line.photos, start=1):
        width, height = photo.header().size
        yield f"image {number}: {photo.name}, {width} x {height}"


def _seen(line: Conversation, collator: Collator) -> Iterator[str]:
    """A conversation as the model will see it."""
    example = from_conversation(line)
    batch = collator([example])
    spans = batch.encoded.images[0]
    counts = iter([f"[{len(span.positions_V)} image tokens]" for span in spans])
    first, *rest = batch.encoded.order_texts[0].split(collator.processor.image_token)
    yield _shown(first + "".join(f"{next(counts)}{text}" for text in rest))
    for number, (photo, image) in enumerate(zip(line.photos, example.images, strict=True), start=1):
        yield f"image {number}: {photo.name}, {image.width} x {image.height}"
    learned = int(np.count_nonzero(batch.answer_R.numpy()))
    yield f"{batch.n_tokens} tokens in all, {learned} of them trained on: {_answers(line)}"


def _answers(line: Conversation) -> str:
    turns: tuple[Turn, ...] = turns_of(line).turns
    return ", ".join(repr(_shown(turn.answer, 60)) for turn in turns if turn.learned)


def _plural(unit: str) -> str:
    return f"{unit.removesuffix('y')}ies" if unit.endswith("y") else f"{unit}s"


def _shown(text: str, most: int = MOST_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]} [... {len(text) - most:,} characters]"
