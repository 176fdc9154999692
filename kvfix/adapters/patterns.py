"""Regexes that somebody else wrote, matched against module names in bounded time and memory.

Python's `re` has no limit: `(.*)*x` runs for longer than a name can tell. PEFT matches with `re`,
so a pattern of a config or an adapter never reaches it: kvfix matches here, and hands PEFT the
names that were found.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import regex

from kvfix.wording import cause, shown

SECONDS = 1.0  # for all names together; an honest pattern takes milliseconds for a 70 B model
_LONGEST = 50_000  # characters: every module of such a model, spelled out
_LARGEST = 200_000  # characters times counted repeats, which `regex` writes out when it compiles
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_NAME = re.compile(r"[\w.\\-]+")


class Pattern:
    """A compiled regex with a time limit."""

    def __init__(self, text: str, *, what: str):
        """Compile what `re` could read, or raise a ValueError that begins with `what`."""
        self.text, self._what = text, what
        if len(text) > _LONGEST or _written_out(text) > _LARGEST:
            raise ValueError(
                f"{what}: expected a regex of at most {_LONGEST} characters, and {_LARGEST} with "
                f"its repeats written out, found {shown(text)}; give it plain module names"
            )
        try:
            re.compile(text)  # the syntax is `re`'s, of which `regex` knows more
            self._compiled = regex.compile(text)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{what}: expected a regex, found {shown(text)}: {cause(error)}"
            ) from error

    def matching(self, names: Sequence[str]) -> list[str]:
        """The names that the whole pattern matches, in order; a ValueError after `SECONDS`."""
        end = time.monotonic() + SECONDS
        try:
            return [
                name
                for name in names
                if self._compiled.fullmatch(name, timeout=max(end - time.monotonic(), 1e-6))
            ]
        except TimeoutError:
            raise ValueError(
                f"{self._what}: expected a regex that matches {len(names)} module names within "
                f"{SECONDS:g} s, found that {shown(self.text)} does not; a repeat inside a repeat "
                "explodes"
            ) from None


def is_name(text: str) -> bool:
    """Whether a pattern is a plain module name, or the end of one; such need no time limit."""
    return _NAME.fullmatch(text) is not None


def _written_out(text: str) -> int:
    size = len(text)
    for low, high in _REPEAT.findall(text):
        size *= max(int(n[:9]) for n in (low or "1", high or "1"))
    return size
