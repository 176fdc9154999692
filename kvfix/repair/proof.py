"""Whether a model's processor takes a conversation: told without the model's weights.

A chat template fails by the kind of a conversation (a system turn, several turns, images that do
not stand first), and an image processor by the shape of an image. So every text is looked at, and
the first conversation of each kind and unusual shape is turned into a batch as in training.
"""

from __future__ import annotations

from typing import Any

from kvfix.checkpoint import folder as checkpoint
from kvfix.data.training.conversation import Conversation
from kvfix.data.training.examples import Example, from_conversation, turns_of
from kvfix.data.training.verify import Size
from kvfix.mlm.families import family_of
from kvfix.mlm.processor import load_processor
from kvfix.repair.batch import STAND_IN, Collator
from kvfix.repair.chat import check
from kvfix.wording import cause

_USUAL_RATIO, _USUAL_SIDE = 10, 64  # beyond these an image is tried out
_TURNS = 3  # that tell a conversation's kind


def collator_of(id_or_dir: str, processor: str | None = None) -> Collator:
    """What makes batches for a model, from its config and processor alone."""
    found = checkpoint.find(id_or_dir, weights=False)
    family = family_of(found.config.get("model_type"), where=str(found.folder / "config.json"))
    config = checkpoint.load_config(found.folder)
    beside = found.folder
    if processor is not None:
        beside, _ = checkpoint.locate(processor, weights=False)
    return Collator(load_processor(beside, config, family), config, family)


class Proof:
    """Looks at conversations one after the other; remembers what has worked."""

    def __init__(self, collator: Collator):
        self.collator = collator
        self._known: set[Any] = set()

    def __call__(self, line: Conversation, sizes: tuple[Size, ...]) -> None:
        """Refuse a conversation that training would stop at (see `kvfix.data.training.verify`)."""
        turns, system = turns_of(line)
        check(Example(line.id, (STAND_IN,) * len(sizes), turns, system=system), self._processor)
        kind = (
            bool(system),
            tuple(tuple(part is None for part in turn.user) for turn in turns[:_TURNS]),
        )
        odd = [size for size in sizes if _is_odd(size)]
        if {kind, *odd} <= self._known:
            return
        try:
            self.collator([from_conversation(line)])
        except ValueError:
            raise
        except Exception as error:  # of a template or an image processor, of many classes
            raise ValueError(
                f"expected a conversation that the model's processor takes, found one that it "
                f"refuses: {cause(error)}"
            ) from error
        self._known |= {kind, *odd}

    @property
    def _processor(self) -> Any:
        return self.collator.processor


def _is_odd(size: Size) -> bool:
    return max(size) > _USUAL_RATIO * min(size) or min(size) < _USUAL_SIDE
