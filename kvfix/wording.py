"""What a message shows of data and of libraries' own messages: bounded, on one line, never torn."""

from __future__ import annotations

import re
import reprlib

_SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Z`'\"(\[])")
_ENDLESS = 600  # characters of one sentence; more than this is data, not words


def shown(value: object, limit: int = 60) -> str:
    """A value of any size and type as it is written in Python, cut to `limit` characters."""
    if isinstance(value, str):
        value = value[: limit + 1]  # its repr alone would double a string of 50 MB
    text = _Bounded(limit).repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Bounded(reprlib.Repr):
    """`repr` that ends: of containers within containers, which YAML's aliases make without end."""

    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, limit + 2, 10**4, 10**4
        self.maxlist = self.maxdict = self.maxtuple = self.maxset = 12

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: self.maxstring])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: self.maxstring])

    def repr_int(self, x: int, level: int) -> str:
        # Python writes no number of more than 4,300 digits.
        return repr(x) if x.bit_length() < 10**4 else f"a number of {x.bit_length()} bits"


def cause(error: BaseException | str, limit: int = 300) -> str:
    """What a library said, on one line: its first cause whole, then the sentences that fit.

    After `limit` characters no further sentence is added; " ..." says that some were left out.
    """
    if isinstance(error, str):
        text, otherwise = error, "no message"
    else:
        text, otherwise = str(error), type(error).__name__
    lines = [" ".join(line.split()) for line in text[: 100 * _ENDLESS].splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return otherwise
    first = lines.pop(0)
    while first.endswith(":") and lines:  # a heading; what it announces is the cause
        first = f"{first} {lines.pop(0)}"
    kept = ""
    sentences = [*_SENTENCE.split(first), *lines]
    for number, sentence in enumerate(sentences):
        if kept and len(kept) + len(sentence) > limit:
            return f"{kept} ..."
        kept = f"{kept} {_bounded(sentence)}".lstrip()
        if kept.endswith(" ...") and number + 1 < len(sentences):
            return kept
    return kept


def _bounded(sentence: str) -> str:
    """Cut between words, where what a sentence quotes has no end."""
    if len(sentence) <= _ENDLESS:
        return sentence
    head = sentence[:_ENDLESS]
    return f"{head[: head.rfind(' ')] if ' ' in head else head} ..."


def short_path(path: object, limit: int = 200) -> str:
    """A path, or another name out of data, on one line: its beginning and its end if it is long.

    A name that does not print as it is, is written as Python writes it.
    """
    text = str(path)
    if len(text) > limit:
        half = (limit - 40) // 2
        head, tail = text[:half], text[-half:]
        text = f"{head}[... {len(text) - 2 * half:,} characters ...]{tail}"
    return text if text.isprintable() else repr(text)
