"""What one training record says: a conversation about photos, masks and points beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvfix.data.pictures.rle import decode_rle
from kvfix.data.training.photos import Photo

PLACEHOLDER = "<image>"


class Message(NamedTuple):
    """One turn."""

    role: str  # system, user or assistant
    content: str
    learned: bool = True  # whether an answer is trained on; it is context otherwise


class Match(NamedTuple):
    """Two points that show the same thing."""

    image_a: int  # index into the conversation's photos
    image_b: int
    a: tuple[float, float]  # x, y in pixels of image_a
    b: tuple[float, float]


@dataclass(frozen=True)
class RleMask:
    """The pixels of one thing on one photo."""

    image: int  # index into the conversation's photos
    label: str
    size: tuple[int, int]  # height, width of the photo
    counts: str | tuple[int, ...] = field(repr=False)

    def decode(self) -> np.ndarray:
        """Uint8 (height, width), 0 or 1."""
        return decode_rle(self.size, self.counts)


@dataclass(frozen=True)
class Conversation:
    """One record."""

    id: str
    photos: tuple[Photo, ...]  # decoded when they are read
    messages: tuple[Message, ...]
    masks: tuple[RleMask, ...] = ()
    points: tuple[Match, ...] = ()
    sub_task: str = ""

    def digest(self) -> bytes:
        """A hash of all that is learned; a photo counts by its name and size, or by its bytes."""
        photos = [
            hashlib.sha256(photo.source).hexdigest()
            if isinstance(photo.source, bytes)
            else (photo.source.name, photo.source.stat().st_size)
            for photo in self.photos
        ]
        masks = [(m.image, m.label, m.size, m.counts) for m in self.masks]  # repr hides counts
        text = repr((self.id, self.messages, masks, self.points, self.sub_task, photos))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
