"""Every picture of training data, decoded once and in threads before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from kvfix.data.training.conversation import Conversation
from kvfix.data.training.dataset import Conversations
from kvfix.data.training.photos import Photo

MOST_THREADS = 16
_AT_ONCE = 256  # records handed to the threads together, so that memory stays small
Size = tuple[int, int]  # width, height
Look = Callable[[Conversation, tuple[Size, ...]], None]


class Bad(NamedTuple):
    """A conversation that cannot be trained on."""

    at: int  # its index
    why: str


def verify(
    lines: Conversations,
    *,
    look: Look = lambda line, sizes: None,
    tick: Callable[[str], None] = lambda now: None,
    threads: int | None = None,
) -> list[Bad]:
    """Decode every picture, and list the conversations of those that cannot be read, in order.

    `look` checks the rest of a conversation, in order and in this thread, given the sizes of its
    pictures, and raises a ValueError; `tick` is called after each. As many `threads` decode as
    there are cores, for None.
    """
    seen = _Seen()
    found: list[Bad] = []

    def read(index: int) -> tuple[Conversation, tuple[Size, ...]] | Exception:
        try:
            line = lines[index]
            return line, tuple(seen.size(photo) for photo in line.photos)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(threads or min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(lines), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(lines)))
            for index, got in zip(indices, pool.map(read, indices), strict=True):
                try:
                    if isinstance(got, Exception):
                        raise got
                    look(*got)
                except (ValueError, OSError) as error:
                    found.append(Bad(index, str(error)))
                tick("")
    return found


class _Seen:
    """Sizes of pictures, or what is wrong with them, by file."""

    def __init__(self) -> None:
        self._by_path: dict[Path, Size | Exception] = {}
        self._lock = Lock()

    def size(self, photo: Photo) -> Size:
        """The size of the decoded picture; raises what decoding it raised."""
        if isinstance(photo.source, bytes):
            return photo.read().image.size
        with self._lock:
            known = self._by_path.get(photo.source)
        if known is None:
            try:
                known = photo.read().image.size
            except (ValueError, OSError) as error:
                known = error
            with self._lock:
                self._by_path[photo.source] = known
        if isinstance(known, Exception):
            raise known
        return known
