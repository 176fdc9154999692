"""What holds for every text: no letter out of nothing, none that is not offered, linear time."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfix.eval.mcq.letters.parse import EVERY_LETTER, PROFILES, UNPARSED, extract

# Pieces of which answers are made, and of which patterns are afraid.
PIECES = (
    *(
        "A",
        "B",
        "C",
        "b",
        "a",
        "E",
        "Z",
        "I",
        "(A)",
        "(B)",
        "**B**",
        "B.",
        "A:",
        "[C]",
        "（Ｂ）",
        "Ⓐ",
    ),
    *("answer", "Answer:", "The answer is", "final answer is", "option", "choose", "is", "correct"),
    *("not", "or", "and", "because", "neither", "wait", "if", "than", "wrong", "the left jar"),
    *("the", "right jar", "a cat", "jar", "1.5", "答案是", "不是", "选", "或", "Antwort:"),
    *("<think>", "</think>", "<answer>", "</answer>", "◁/think▷", "<|channel|>final<|message|>"),
    *(
        r"\boxed{",
        r"\text{",
        "}",
        "$",
        "```json\n",
        '{"answer":',
        '"',
        "{",
        "*",
        "_",
        "#",
        "'",
        "-",
    ),
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", ".", ",", ";", ":", "?", "/", "&", "+", "°", "\u0301"),
)
OPTIONS = ("the left jar", "the right jar", "1.5", *(f"jar {n}" for n in range(7)))
ANSWERS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(max_size=200),
)


def letters_in(text: str) -> set[str]:
    """Every letter that a text holds in some form: full-width, circled, small."""
    return set(unicodedata.normalize("NFKC", text).upper()) & set(EVERY_LETTER)


@given(ANSWERS)
def test_no_letter_that_the_text_does_not_hold(text: str) -> None:
    letter = extract(text)
    assert letter is UNPARSED or letter in letters_in(text)


@given(ANSWERS, st.integers(2, 10))
def test_no_letter_that_the_question_does_not_offer(text: str, n: int) -> None:
    options = OPTIONS[:n]
    letter = extract(text, options=options)
    assert letter is UNPARSED or letter in EVERY_LETTER[:n]
    if letter is not UNPARSED and letter not in letters_in(text):
        assert options[EVERY_LETTER.index(letter)] in " ".join(text.split())


@given(ANSWERS, st.text(" \t\r\n\u00a0\u3000", max_size=40), st.text(" \t\r\n", max_size=40))
def test_space_round_an_answer_changes_nothing(text: str, before: str, after: str) -> None:
    assert extract(before + text + after) == extract(text)


@given(ANSWERS, st.sampled_from(tuple(PROFILES)))
def test_every_profile_takes_every_text(text: str, profile: str) -> None:
    assert extract(text, profile, options=OPTIONS) in (UNPARSED, *EVERY_LETTER)


@given(st.sampled_from("ABCD"), st.text("abcdefg (A)\n.", max_size=60))
def test_reasoning_never_moves_an_answer(letter: str, thought: str) -> None:
    for close in (f"<think>{thought}</think>", f"{thought}</think>", f"[THINK]{thought}[/THINK]"):
        assert extract(f"{close}\nThe answer is ({letter}).") == letter
    assert extract(f"<think>{thought} The answer is {letter}.") is UNPARSED


@given(st.permutations("ABCD"))
def test_two_statements_that_differ_are_never_guessed(order: list[str]) -> None:
    x, y, *_ = order
    assert extract(f"The answer is {x}. The answer is {y}.") is UNPARSED
    assert extract(f"The answer is {x} or {y}") is UNPARSED
    assert extract(f"{x}\n\nThe answer is {y}.") is UNPARSED
    assert extract(f"The answer is {x}, not {y}.") == x
    assert extract(f"The answer is {x}. Wait, no: the answer is {y}.") == y


def seconds(text: str, profile: str) -> float:
    start = time.perf_counter()
    extract(text, profile, options=OPTIONS)
    return time.perf_counter() - start


@pytest.mark.parametrize("profile", PROFILES)
@settings(deadline=None, max_examples=25)
@given(
    head=st.sampled_from(("", "A", "The answer is", "<answer>", "answer")),
    unit=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join),
)
def test_time_grows_no_faster_than_the_text(profile: str, head: str, unit: str) -> None:
    """Quadratic time would grow sixteenfold; slack for a machine that does other things."""
    short, long = (head + (unit * (n // len(unit) + 1))[:n] for n in (4_000, 16_000))
    assert min(seconds(long, profile) for _ in range(2)) < 8 * seconds(short, profile) + 0.5


def test_an_answer_and_sixteen_thousand_spaces_are_read_at_once() -> None:
    for profile in PROFILES:
        for space in (" ", "\n", "\t ", "\u00a0"):
            assert seconds("answer is" + space * 16_000 + "x", profile) < 2
