"""From what a model wrote to the option it chose: one profile for the rules of each suite.

BLINK scores move by 30 points with the rules of extraction alone, so the profile is part of every
result. No profile asks a judge model: where the suite would, the answer stays UNPARSED and counts
as wrong. A profile's name says whose rules it follows; "@before-N" are those that held until pull
request N of the suite's repository. `FOLLOWS` says it in words, and is written into results.

A letter is one of "ABCDE", capital, without brackets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from kvfix.eval.mcq.letters import suite_rules
from kvfix.eval.mcq.letters.rules import read
from kvfix.eval.mcq.letters.suite_rules import (
    BRACKETED,
    EVERY_LETTER,
    UNPARSED,
    Letter,
    OptionTexts,
    is_letter,
    only,
)
from kvfix.eval.mcq.letters.text import scopes


class _Profile(NamedTuple):
    rule: Callable[[str, OptionTexts], Letter]
    follows: str


def extract(
    text: str | None, profile: str = "kvfix", *, options: Sequence[str] | None = None
) -> Letter:
    """The letter of the option that an answer, None for nothing, chooses by a profile, or UNPARSED.

    Texts of at most ten options are in order; None where they are not known: then five letters are
    possible, and no rule that matches texts applies.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, found {profile!r}")
    if options is not None and len(options) > len(EVERY_LETTER):
        raise ValueError(f"expected at most {len(EVERY_LETTER)} options, found {len(options)}")
    if text is None:
        return UNPARSED
    return PROFILES[profile](text, tuple(options) if options is not None else None)


def parsed_letter(parsed: str | None, profile: str = "kvfix") -> Letter:
    """The letter of an answer that someone else has parsed.

    The official scorer compares strings, so that under ``official`` only "(B)" is a B, and "(B)
    Point B" is wrong (``eval/evaluate.py``); the other profiles also take "B".
    """
    if parsed is None:
        return UNPARSED
    if match := BRACKETED.fullmatch(parsed):
        return match[1]
    return parsed if profile != "official" and is_letter(parsed) else UNPARSED


def _kvfix(text: str, options: OptionTexts) -> Letter:
    """What is stated outside of all reasoning; see `kvfix.eval.mcq.letters.rules` for the rules."""
    letters = [read(scope, options) for scope in scopes(text)]
    # Each of several tags of an answer must say the same.
    return only(letters) if all(letters) else UNPARSED


_PROFILES: Final = {
    "kvfix": _Profile(_kvfix, "kvfix's own rules, version 2"),
    "official": _Profile(suite_rules.official, "zeyofu/BLINK_Benchmark, analyze_answer, no judge"),
    "lmms-eval": _Profile(suite_rules.lmms_eval, "lmms-eval since pull request 1435"),
    "lmms-eval@before-1435": _Profile(
        suite_rules.lmms_eval_before_1435, "lmms-eval before pull request 1435"
    ),
    "vlmevalkit": _Profile(suite_rules.vlmevalkit, "VLMEvalKit since pull request 1552, no judge"),
    "vlmevalkit@before-1552": _Profile(
        suite_rules.vlmevalkit_before_1552, "VLMEvalKit before pull request 1552, no judge"
    ),
}
PROFILES: Final = MappingProxyType({name: p.rule for name, p in _PROFILES.items()})
FOLLOWS: Final = MappingProxyType({name: p.follows for name, p in _PROFILES.items()})
