"""Answer extraction: every stage of every profile, and what each must leave unparsed."""

from __future__ import annotations

import pytest

from kvfix.eval.mcq.letters.parse import PROFILES, UNPARSED, extract, parsed_letter

PLACES = ("the left jar", "the right jar", "neither jar")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        (" B", UNPARSED),  # compared without stripping
        ("B.", UNPARSED),
        ("<s> B", UNPARSED),
        ("(b)", UNPARSED),
        ("It must be (C) as drawn", "C"),
        ("It must be (C).", UNPARSED),  # "(C)." is no word of the form (X)
        ("(A) and (B) differ", UNPARSED),
        ("(A) is round, (B) is flat.\n\nSo it is (B)", "B"),
        ("(A) it is.\n\nNone of it is sure", "A"),
        ("(A) or (B)\n\n(A) or (B)", UNPARSED),
        ("(A) first.\n\nThen (B) and (C)", UNPARSED),
        ("(A) first.\n\nThen (B)", "B"),
        ("(A) first.\nThen (B)", UNPARSED),  # one paragraph
        ("(A) \n\nThen (A) again (A)", "A"),
        ("The answer is B", UNPARSED),
        ("", UNPARSED),
        ("E", "E"),
    ],
)
def test_official_rules(text: str, letter: str | None) -> None:
    assert extract(text, "official") == letter


def test_official_ignores_words_for_options_that_are_not_there() -> None:
    assert extract("either (B) or (D)", "official") is UNPARSED
    assert extract("either (B) or (D)", "official", options=PLACES) == "B"
    assert extract("(D)", "official", options=PLACES) == "D"  # bare: taken, and wrong


@pytest.mark.parametrize(
    ("text", "before", "since"),
    [
        ("B", "B", "B"),
        ("  (b) the right jar", "B", "B"),
        ("((B", "B", "B"),
        ("Both jars", "B", "B"),  # the first letter of whatever word
        ("The answer is B", UNPARSED, "B"),  # T, which no question offers
        ("Based on it, the answer is (C).", "B", "C"),
        ("answer: A. Or answer - (b)", "A", "B"),  # the last one
        ("It is (C), not (D)", UNPARSED, "D"),  # the last one in brackets
        ("C)\nThe answer is D", "C", "C"),  # a first line of up to four characters
        ("C) it is\nThe answer is D", "C", "D"),
        ("Answered both", "A", "A"),
        ("<s> B", UNPARSED, UNPARSED),
        ("**B**", UNPARSED, UNPARSED),
        ("", UNPARSED, UNPARSED),
        ("\u0131 B", UNPARSED, UNPARSED),  # a dotless i matches [A-Z] without case
    ],
)
def test_lmms_eval_rule(text: str, before: str | None, since: str | None) -> None:
    assert extract(text, "lmms-eval@before-1435") == before
    assert extract(text, "lmms-eval") == since


def test_lmms_eval_reads_only_letters_that_the_question_offers() -> None:
    text = "The answer is (D). Then (B)."
    assert extract(text, "lmms-eval") == "D"
    assert extract(text, "lmms-eval", options=PLACES) == "B"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("<s> (B) right", "B"),
        ("I choose jar B.", "B"),
        ("B is the one that I would choose", UNPARSED),  # first place is not among the last four
        ("x B one two three", "B"),
        ("x B one two three four", UNPARSED),
        ("A or B", UNPARSED),
        ("the answer is a guess made by me here", "A"),  # upstream has no word boundary
        ("the correct answer is **C** for many reasons given above", "C"),
        ("the answer is based on the colour that I see there", "B"),
        ("the answer is Z", UNPARSED),
        ("Z, as no answer is certain enough for me to choose", UNPARSED),  # else: C of "certain"
        ("b", UNPARSED),
        ("I can't process this file. B", UNPARSED),
        ("Cannot determine the answer B", UNPARSED),
    ],
)
def test_vlmevalkit_rules(text: str, letter: str | None) -> None:
    assert extract(text, "vlmevalkit") == letter


def test_vlmevalkit_read_no_statement_before_pull_request_1552() -> None:
    text = "the correct answer is **C** for many reasons given above"
    assert extract(text, "vlmevalkit") == "C"
    assert extract(text, "vlmevalkit@before-1552") is UNPARSED
    assert extract("I choose jar B.", "vlmevalkit@before-1552") == "B"


def test_vlmevalkit_falls_back_on_the_text_of_one_option() -> None:
    assert extract("It is THE RIGHT JAR", "vlmevalkit") is UNPARSED
    assert extract("It is THE RIGHT JAR", "vlmevalkit", options=PLACES) == "B"
    assert extract("the left jar or the right jar", "vlmevalkit", options=PLACES) is UNPARSED
    long = "the right jar " + "which is tall " * 5
    assert extract(long, "vlmevalkit", options=PLACES) is UNPARSED  # over twice the options' length
    assert extract("the answer is D, surely so for me", "vlmevalkit", options=PLACES) is UNPARSED
    failed = "Failed to obtain answer via API: the left jar"
    assert extract(f"{failed} B", "vlmevalkit", options=(*PLACES, "x" * 40)) == "A"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("<s> b</s>", "B"),
        ("(B).<|im_end|>", "B"),
        ("**B**", "B"),
        ("[B]", "B"),
        ("B. the right jar", "B"),
        ("B) the right jar (A) not", "B"),
        ("It must be (C).", "C"),
        ("**(C)** since the lid is red", "C"),
        ("(A) is round, (B) is flat.\n\nSo it is (B).", "B"),
        ("(A) is round, (B) is flat.", UNPARSED),
        ("(A) is round, (B) is flat. The answer is B", "B"),
        ("The answer is B because of its lid", "B"),
        ("Answer: C", "C"),
        ("ANSWER: **C**", "C"),
        ("the correct answer is option D, not the rest", "D"),
        ("My answer would be: E", "E"),
        ("The answer is A.", "A"),
        ("The answer is A", "A"),
        ("The answer is A because of its lid", "A"),
        ("The answer is A jar on the left", UNPARSED),  # an article
        ("The answer is a jar", UNPARSED),
        ("The answer is based on colour", UNPARSED),
        ("The answer is B-flat", UNPARSED),
        ("The answer is Blue", UNPARSED),
        ("At first the answer is B. But no: the answer is C", "C"),
        ("Both jars", UNPARSED),
        ("I cannot help with that.", UNPARSED),
        ("", UNPARSED),
        ("<s> </s>", UNPARSED),
        ("(Z)", UNPARSED),
        ("É", UNPARSED),
    ],
)
def test_kvfix_stages(text: str, letter: str | None) -> None:
    assert extract(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is the Right  jar!", "B"),
        ("the left jar or the right jar", UNPARSED),
        ("the left jar or the right jar?\n\nthe right jar", "B"),
        ("the right jars", UNPARSED),  # whole words only
        ("(D)", UNPARSED),  # not offered
        ("I take (D) and not (B)", UNPARSED),
        ("The answer is D", UNPARSED),
        ("The answer is D. (B)", UNPARSED),
        ("The answer is the right jar, not the left jar.", "B"),
        ("It is the left jar rather than the right jar", "A"),
        ("It is not the left jar", UNPARSED),  # what is left is not said
        ("The answer is neither jar", "C"),
        ("The answer is none", UNPARSED),
        ("The correct answer is A the left jar", "A"),
        ("Answer: the left JAR.", "A"),
    ],
)
def test_kvfix_option_texts(text: str, letter: str | None) -> None:
    assert extract(text, options=PLACES) == letter


def test_kvfix_takes_the_longer_of_nested_options() -> None:
    nested = ("green", "dark green", "1.5")
    assert extract("a dark green lid", options=nested) == "B"
    assert extract("a green lid", options=nested) == "A"
    assert extract("dark green or green", options=nested) is UNPARSED
    assert extract("dark green, not green", options=nested) == "B"
    assert extract("15 or 105", options=nested) is UNPARSED  # the point is no wildcard
    assert extract("nothing", options=("", "x")) is UNPARSED


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_unparsed_and_odd_text_is_no_crash(profile: str) -> None:
    assert extract(None, profile) is UNPARSED
    for text in ("\0", "\ud800", "(" * 5000, "answer is " * 2000, "\\1", "A" * 10_000):
        assert extract(text, profile, options=PLACES) in (UNPARSED, *"ABC")


def test_profiles_and_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"one of kvfix, official, lmms-eval, .*found 'x"):
        extract("A", "xyz")
    with pytest.raises(ValueError, match="at most 10 options, found 11"):
        extract("A", options=tuple("abcdefghijk"))


def test_parsed_letters_are_compared_as_strings_by_the_official_scorer_only() -> None:
    assert parsed_letter("(B)", "official") == parsed_letter("(B)") == "B"
    assert parsed_letter("B", "official") is UNPARSED and parsed_letter("B") == "B"
    for text in ("(B) Point B", "(Z)", " (B)", "", "AB", None):
        assert parsed_letter(text, "official") is parsed_letter(text) is UNPARSED


def test_the_pronoun_is_no_letter_even_of_ten_options() -> None:
    ten = tuple(f"jar {n}" for n in range(10))
    assert extract("I think the answer is C", options=ten) == "C"
    assert extract("I would say so", options=ten) is UNPARSED
    assert extract("I am not sure", options=ten) is UNPARSED
    assert extract("The answer is (I).", options=ten) == extract("I", options=ten) == "I"
