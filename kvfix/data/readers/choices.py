"""Options and the right answer of a multiple-choice question, in the ways people write them.

An answer is a letter ("B", "(B)", "B.", "B. a cow"), the text of an option, or its number from 0.
Where two of these readings differ the question is refused: nothing is guessed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from kvfix.wording import shown

LETTERS = "ABCDEFGHIJ"
FEWEST, MOST = 2, len(LETTERS)
_LINE = re.compile(r"^[ \t]*(?:\(([A-J])\)|([A-J])[.):])[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_LABEL = re.compile(r"(?:\(([A-J])\)|([A-J])[.):]) *")
_LETTER = re.compile(r"\(?([A-Ja-j])\)?[.):]?")
_LONGEST = 20_000  # characters of options that stand in one text


def read_choices(value: object) -> tuple[str, ...]:
    """The options of a question, without letters before them: of a list, a mapping, or a text of
    these.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = _unpacked(value)
    if isinstance(value, dict):
        value = [value[x] for x in LETTERS[: len(value)] if value.get(x) is not None]
    if not isinstance(value, list) or not FEWEST <= len(value) <= MOST:
        raise ValueError(f"expected {FEWEST} to {MOST} choices, found {shown(value)}")
    texts = [_text(choice) for choice in value]
    labels = [_LABEL.match(text) for text in texts]
    if all(m and (m[1] or m[2]) == x for m, x in zip(labels, LETTERS, strict=False)):
        texts = [text[m.end() :] for text, m in zip(texts, labels, strict=True) if m]
    if len({_plain(text) for text in texts}) < len(texts) or not all(map(_plain, texts)):
        raise ValueError(f"expected choices that differ, found {shown(texts)}")
    return tuple(texts)


def lettered_lines(text: str) -> tuple[str, ...]:
    """The options in a text's last list from (A) on without a gap, a line each, if it has one."""
    found: list[str] = []
    for match in _LINE.finditer(text):
        letter = match[1] or match[2]
        if letter == "A":
            found = []
        if len(found) < MOST and letter == LETTERS[len(found)]:
            found.append(match[3])
    return tuple(found) if len(found) >= FEWEST else ()


def read_answer(value: object, choices: Sequence[str]) -> int:
    """Index of the right option, or a ValueError if the answer is none or could be another."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    offered = LETTERS[: len(choices)]
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise ValueError(
                f"expected an answer as a letter out of {offered} or a number from 0, found {value}"
            )
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected an answer, a letter out of {offered}, found {shown(value)}")
    readings = _readings(value.strip(), choices)
    if len(readings) != 1:
        found = shown(value)
        if readings:
            found += f", which is {' or '.join(f'({LETTERS[i]})' for i in sorted(readings))}"
        raise ValueError(f"expected an answer, one letter out of {offered}, found {found}")
    return readings.pop()


def _readings(text: str, choices: Sequence[str]) -> set[int]:
    plain = [_plain(choice) for choice in choices]
    readings = {i for i, choice in enumerate(plain) if choice == _plain(text)}
    if letter := _LETTER.fullmatch(text):
        readings |= _below(LETTERS.index(letter[1].upper()), choices)
    if text.isdecimal() and text.isascii() and len(text) < 3:
        readings |= _below(int(text), choices)
    if label := _LABEL.match(text):
        said = _plain(text[label.end() :])
        at = LETTERS.index(label[1] or label[2])
        if said in plain:
            readings |= {plain.index(said)} | _below(at, choices)
        elif not said:
            readings |= _below(at, choices)
    return readings


def _below(index: int, choices: Sequence[str]) -> set[int]:
    return {index} if index < len(choices) else set()


def _unpacked(text: str) -> Any:
    if len(text) > _LONGEST:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _text(choice: object) -> str:
    if isinstance(choice, bool) or not isinstance(choice, (str, int, float)):
        raise ValueError(f"expected choices as texts, found {shown(choice)}")
    return str(choice).strip()


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
