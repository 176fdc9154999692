"""The rules by which other suites read a letter from an answer, to the digit of their figures.

| profile | rules of |
|---|---|
| official | zeyofu/BLINK_Benchmark, ``eval/test_benchmark.py`` (``analyze_answer``) |
| lmms-eval | EvolvingLMMs-Lab/lmms-eval since pull request 1435, ``tasks/blink/utils.py`` |
| lmms-eval@before-1435 | the same file from pull request 927 on |
| vlmevalkit | open-compass/VLMEvalKit since pull request 1552, ``utils/matching_util.py`` |
| vlmevalkit@before-1552 | the same file since pull request 1175 |

No rule asks a judge: where its suite would, the answer stays unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

LETTERS: Final = "ABCDE"  # what the benchmarks know, and all there is where options are not given
EVERY_LETTER: Final = "ABCDEFGHIJ"  # of up to ten options of a question
UNPARSED: Final = None
Letter = str | None  # one of EVERY_LETTER, or UNPARSED
OptionTexts = tuple[str, ...] | None

BRACKETED = re.compile(r"\(([A-E])\)")
_BRACKETED = re.compile(r"\(([A-J])\)")


def is_letter(text: str) -> bool:
    """Whether a text is exactly one letter of an option."""
    return len(text) == 1 and text in LETTERS


def offered(options: OptionTexts) -> str:
    """The letters that a question offers; all of them where its options are not known."""
    return LETTERS if options is None else EVERY_LETTER[: len(options)]


def only(letters: Iterable[str]) -> Letter:
    """The letter, if there is exactly one."""
    found = set(letters)
    return found.pop() if len(found) == 1 else UNPARSED


def official(text: str, options: OptionTexts) -> Letter:
    """A bare letter or "(X)"; else the one "(X)" that stands between spaces, best in the last
    paragraph.
    """
    known = max(LETTERS, offered(options), key=len)
    if len(text) == 1 and text in known:
        return text
    if (match := _BRACKETED.fullmatch(text)) and match[1] in known:
        return match[1]
    words = {f"({x})": x for x in offered(options)}
    last = only(words[word] for word in text.split("\n\n")[-1].split() if word in words)
    return last or only(words[word] for word in text.split() if word in words)


def lmms_eval_before_1435(text: str, options: OptionTexts) -> Letter:
    """The first letter of the text, in either case, whatever word it begins ("Both" is a B)."""
    match = re.match(r"[\(\s]*([A-Z])[\)\.\s]*", text.strip(), flags=re.IGNORECASE)
    # IGNORECASE lets a few other characters pass for A-Z, none of which is a letter of an option.
    letter = match[1].upper() if match else ""
    return letter if letter and letter in offered(options) else UNPARSED


_SHORT_LINE = 4  # characters of a first line that is nothing but the answer
_LINE = re.compile(r"\(?([A-J])\)?[.\s:,)]*", re.IGNORECASE)
# Upstream's one pattern for a statement, in parts: as it is written there, a run of spaces could be
# shared out between its optional parts in many ways, all of which would be tried.
_ANSWER = re.compile(r"answers?(?:\s+is)?", re.IGNORECASE)
_SPACES = re.compile(r"\s*")
_STATED = re.compile(r"\(?([A-J])(?![A-Za-z])", re.IGNORECASE)


def lmms_eval(text: str, options: OptionTexts) -> Letter:
    """A first line that is the letter; else the last "answer is X"; else the last "(X)"; else the
    first letter of the text. Only letters that the question offers count.
    """
    text = text.strip()
    letters = offered(options)
    line = text.split("\n", 1)[0].strip()
    match = _LINE.fullmatch(line) if len(line) <= _SHORT_LINE else None
    if match and match[1].upper() in letters:
        return match[1].upper()
    stated = [x for found in _ANSWER.finditer(text) if (x := _stated(text, found.end(), letters))]
    if stated:
        return stated[-1]
    bracketed = [x for x in _BRACKETED.findall(text) if x in letters]
    if bracketed:
        return bracketed[-1]
    return lmms_eval_before_1435(text, options)


def _stated(text: str, at: int, letters: str) -> Letter:
    """The letter after "answer" or "answer is", and after a colon or hyphen if there is one."""
    at = _past_spaces(text, at)
    if text[at : at + 1] in (":", "-"):
        at = _past_spaces(text, at + 1)
    match = _STATED.match(text, at)
    return match[1].upper() if match and match[1].upper() in letters else UNPARSED


def _past_spaces(text: str, at: int) -> int:
    match = _SPACES.match(text, at)
    return match.end() if match else at


_VLMEVALKIT_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VLMEVALKIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# No word boundary after the letter, as upstream: "the answer is based on" is a B.
_VLMEVALKIT_STATED = re.compile(r"(?i)answer\s+is\s+\**([ABCD])")


def vlmevalkit(text: str, options: OptionTexts) -> Letter:
    """One letter as a word whose first place is among the last four; else "answer is X"; else text.

    Upstream hands what is left to a judge, and without one to Z, which is UNPARSED here.
    """
    return _vlmevalkit(text.strip(), options, stated=True)


def vlmevalkit_before_1552(text: str, options: OptionTexts) -> Letter:
    """The same without "answer is X"."""
    return _vlmevalkit(text.strip(), options, stated=False)


def _vlmevalkit(text: str, options: OptionTexts, *, stated: bool) -> Letter:
    if "Failed to obtain answer via API" not in text:
        if any(phrase in text for phrase in _VLMEVALKIT_REFUSALS):
            return UNPARSED
        letters = offered(options)
        words = text.translate(_VLMEVALKIT_SPACES).split()
        found = {word for word in words if len(word) == 1 and word in letters}
        letter = only(found)
        if letter and words.index(letter) > len(words) - 5:
            return letter
        if not found and "Z" in words:
            return UNPARSED
        match = _VLMEVALKIT_STATED.search(text) if stated else None
        if match and match[1].upper() in letters:
            return match[1].upper()
    if options is None or len(text) > 2 * sum(map(len, options)):
        return UNPARSED
    small = text.lower()
    texts = zip(EVERY_LETTER, options, strict=False)
    return only(x for x, option in texts if option.lower() in small)
