"""From what a model wrote to the option it chose: staged rules, one profile a benchmark suite.

BLINK scores move by 30 points with the rules of extraction alone, so the profile is part of every
result. No profile asks a judge model: where the suite would, the answer stays UNPARSED and counts
as wrong.

| profile | rules of |
|---|---|
| kvfix | this file: special tokens out, exact letter, "(X)", "answer is X", text of one option |
| official | zeyofu/BLINK_Benchmark, ``eval/test_benchmark.py`` (``analyze_answer``) |
| lmms-eval | EvolvingLMMs-Lab/lmms-eval, ``tasks/blink/utils.py`` (``_extract_answer_letter``) |
| vlmevalkit | open-compass/VLMEvalKit, ``vlmeval/utils/matching_util.py`` (``can_infer``) |

A letter is one of "ABCDE", capital, without brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Final

LETTERS: Final = "ABCDE"
UNPARSED: Final = None
Letter = str | None  # one of LETTERS, or UNPARSED

_BRACKETED = re.compile(r"\(([A-E])\)")
# Chat and sentencepiece marks that detokenisers leave in: <s>, </s>, <|im_end|>, <end_of_turn>.
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:pad|unk|bos|eos|image|(?:start|end)_of_turn)>|\[/?INST\]"
)
# The whole answer is a letter in any dress: B, (B), b., **B**, [B], "B".
_EXACT = re.compile(r"[\s(\[\"'`*]*([A-Ea-e])[\s)\]\"'`*.:]*")
# The answer starts with a labelled option: "B. the third image", "B) ...", "B: ...".
_LABEL = re.compile(r"([A-E])[.):](?=\s)")
# A final statement. An A that stands before a word would be an article, so it must end its clause;
# small letters never count here ("the answer is a dog").
_STATED = re.compile(
    r"\b(?i:answer)\s*(?:(?i:is|would\s+be|should\s+be)\b\s*:?|:)\s*"
    r"(?:\b(?i:option|choice|letter)\s+)?[(\[\"'`*]*"
    r"(?:([B-E])\b(?!['\-])|(A)(?=[)\]\"'`*.,:;!]|\s*$|\s*\n|\s+(?:because|since|as)\b))"
)


def extract(
    text: str | None, profile: str = "kvfix", *, options: Sequence[str] | None = None
) -> Letter:
    """The option that an answer chooses.

    Args:
        text: what the model wrote; None chooses nothing.
        profile: one of `PROFILES`.
        options: texts of the question's options in order, at most five; None where they are not
            known: then five letters are possible, and no rule that matches texts applies.

    Returns:
        A letter, or UNPARSED. Under ``official`` and ``kvfix`` a bare letter counts even beyond the
        options; it is wrong all the same.

    Raises:
        ValueError: an unknown profile, or more than five options.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, found {profile!r}")
    if options is not None and len(options) > len(LETTERS):
        raise ValueError(f"expected at most {len(LETTERS)} options, found {len(options)}")
    if text is None:
        return UNPARSED
    return PROFILES[profile](text, tuple(options) if options is not None else None)


def parsed_letter(parsed: str | None, profile: str = "kvfix") -> Letter:
    """The letter of an answer that someone else has parsed.

    The official scorer compares strings, so that under ``official`` only "(B)" is a B, and
    "(B) Point B" is wrong (``eval/evaluate.py``); the other profiles also take "B".
    """
    if parsed is None:
        return UNPARSED
    if match := _BRACKETED.fullmatch(parsed):
        return match[1]
    return parsed if profile != "official" and _is_letter(parsed) else UNPARSED


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text in LETTERS


def _offered(options: tuple[str, ...] | None) -> str:
    return LETTERS if options is None else LETTERS[: len(options)]


def _only(letters: Iterable[str]) -> Letter:
    """The letter, if there is exactly one."""
    found = set(letters)
    return found.pop() if len(found) == 1 else UNPARSED


def _official(text: str, options: tuple[str, ...] | None) -> Letter:
    """A bare letter or "(X)", nothing round it; else the one "(X)" that stands between spaces.

    The last paragraph wins if it has exactly one.
    """
    if _is_letter(text):
        return text
    if match := _BRACKETED.fullmatch(text):
        return match[1]
    offered = {f"({x})": x for x in _offered(options)}
    last = _only(offered[word] for word in text.split("\n\n")[-1].split() if word in offered)
    return last or _only(offered[word] for word in text.split() if word in offered)


def _lmms_eval(text: str, options: tuple[str, ...] | None) -> Letter:
    """The first letter of the text, in either case, whatever word it begins ("Both" is a B)."""
    match = re.match(r"[\(\s]*([A-Z])[\)\.\s]*", text.strip(), flags=re.IGNORECASE)
    # IGNORECASE lets a few other characters pass for A-Z, none of which is a letter of an option.
    letter = match[1].upper() if match else ""
    return letter if letter and letter in _offered(options) else UNPARSED


_VLMEVALKIT_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VLMEVALKIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# No word boundary after the letter, as upstream: "the answer is based on" is a B.
_VLMEVALKIT_STATED = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")


def _vlmevalkit(text: str, options: tuple[str, ...] | None) -> Letter:
    """One letter as a word whose first place is among the last four; else "answer is X"; else text.

    Upstream hands what is left to a judge, and without one to Z, which is UNPARSED here.
    """
    text = text.strip()
    if "Failed to obtain answer via API" not in text:
        if any(phrase in text for phrase in _VLMEVALKIT_REFUSALS):
            return UNPARSED
        offered = _offered(options)
        words = text.translate(_VLMEVALKIT_SPACES).split()
        found = {word for word in words if _is_letter(word) and word in offered}
        letter = _only(found)
        if letter and words.index(letter) > len(words) - 5:
            return letter
        if not found and "Z" in words:
            return UNPARSED
        stated = _VLMEVALKIT_STATED.search(text)
        if stated and stated[1].upper() in offered:
            return stated[1].upper()
    if options is None or len(text) > 2 * sum(map(len, options)):
        return UNPARSED
    small = text.lower()
    return _only(x for x, option in zip(LETTERS, options, strict=False) if option.lower() in small)


def _kvfix(text: str, options: tuple[str, ...] | None) -> Letter:
    """Exact letter, then "(X)", then "answer is X", then the text of exactly one option.

    At each stage the last paragraph wins over the whole; letters beyond the options count only when
    they are the whole answer.
    """
    text = _SPECIAL.sub(" ", text).strip()
    if match := _EXACT.fullmatch(text):
        return match[1].upper()
    offered = _offered(options)
    if (match := _LABEL.match(text)) and match[1] in offered:
        return match[1]
    last = re.split(r"\n\s*\n", text)[-1]
    for scope in (last, text):
        if letter := _only(x for x in _BRACKETED.findall(scope) if x in offered):
            return letter
    stated = [b or a for b, a in _STATED.findall(text) if (b or a) in offered]
    if stated:
        return stated[-1]
    for scope in (last, text):
        if letter := _named(scope, options):
            return letter
    return UNPARSED


def _named(text: str, options: tuple[str, ...] | None) -> Letter:
    """The one option whose text occurs as whole words; of nested texts the longer one is meant."""
    small = " ".join(text.casefold().split())
    texts = {
        x: " ".join(o.casefold().split()) for x, o in zip(LETTERS, options or (), strict=False)
    }
    for x in sorted(texts, key=lambda x: -len(texts[x])):
        found = texts[x]
        if not found:
            continue
        rest, n = re.subn(rf"(?<!\w){re.escape(found)}(?!\w)", " \0 ", small)
        if n:
            others = [o for y, o in texts.items() if y != x and o]
            unique = not any(re.search(rf"(?<!\w){re.escape(o)}(?!\w)", rest) for o in others)
            return x if unique else UNPARSED
    return UNPARSED


PROFILES: Final = MappingProxyType[str, Callable[[str, tuple[str, ...] | None], Letter]](
    {
        "kvfix": _kvfix,
        "official": _official,
        "lmms-eval": _lmms_eval,
        "vlmevalkit": _vlmevalkit,
    }
)
