"""Answer extraction: every stage of every profile, and what each must leave unparsed."""

from __future__ import annotations

import pytest

from kvfix.eval.answers import PROFILES, UNPARSED, extract, parsed_letter

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


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>maybe (A)</think>B", "B"),
        ("<think>the answer is A", None),
        ("<think>no end (A) <answer>B</answer>", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>B. the right jar</answer>", "B"),
        ("<answer> b </answer>", "B"),
        ("<answer>A</answer> <answer>B</answer>", None),
        ("<answer>neither</answer>", None),
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("$\\boxed{(B)}$", "B"),
        ("so \\(\\boxed{\\mathbf{B}}\\).", "B"),
        ("The answer is \\boxed{B. the right jar}", "B"),
        ("$$\\boxed{A}$$ hmm, wait $$\\boxed{B}$$", "B"),
        ("\\boxed{A} \\boxed{B}", None),
        ("\\fbox{C}", "C"),
        ("**B**", "B"),
        ("*B*", "B"),
        ("__B__", "B"),
        ("`B`", "B"),
        ("# B", "B"),
        ("#### B", "B"),
        ("（Ｂ）", "B"),
        ("Ｂ", "B"),
        ("【B】", "B"),
        ("Ⓑ", "B"),
        ("答案是B", "B"),
        ("答案：B", "B"),
        ("答案是（Ｂ）。", "B"),
        ("正确答案为 B。因为(A)更暗", "B"),
        ("故选B。", "B"),
        ("不是A，选B", "B"),
        ("정답은 B입니다", "B"),
        ("答えはBです", "B"),
        ("Antwort: B", "B"),
        ("Die richtige Antwort ist B.", "B"),
        ("La réponse est B", "B"),
        ("La respuesta correcta es la B.", "B"),
        ("Ответ: B", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("Answer - B", "B"),
        ("Answer:\n\nB", "B"),
        ("## Answer\nB\n## Why\n(A) is dark", "B"),
        ("Final answer: (B)", "B"),
        ("The final answer is $\\boxed{B}$.", "B"),
        ("At first the answer is A. Final answer: B", "B"),
        ("The correct option is B", "B"),
        ("The correct choice would be (B).", "B"),
        ("Option B", "B"),
        ("option B.", "B"),
        ("Option (B) is correct", "B"),
        ("I choose option B because", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("[B]", "B"),
        ("(B", "B"),
        ('"B"', "B"),
        ("'B'", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("b)", "B"),
        ("B: the right jar", "B"),
        ("B because the lid is red", "B"),
        ("B, because (A) is darker", "B"),
        ("The answer is B, not (A)", "B"),
        ("(A) is wrong; (B) is right", "B"),
        ("(A) is wrong; (B) is flat", "B"),
        ("A\n\nBecause (B) is farther.", "A"),
        ("Because (A) is far.\n\nB", "B"),
        ("B\nThe left is darker than (A)", "B"),
        ('{"answer": "B"}', "B"),
        ('```json\n{"answer": "B", "reason": "(A) is dark"}\n```', "B"),
        ('{"reason":"the answer is A","answer":"B"}', "B"),
        ('Here: {"answer": "B"}', "B"),
        ('{"answer": ["B"]}', "B"),
        ('{"answer": ["A","B"]}', None),
        ("A or B", None),
        ("(A) or (B)", None),
        ("neither", None),
        ("not B", None),
        ("Not (B).", None),
        ("The answer is not B.", None),
        ("The answer is not A but B.", "B"),
        ("It is not (A), it is (B).", "B"),
        ("A cat is on the mat", None),
        ("A cat is on the left of the box.", None),
        ("I think so", None),
        ("I", None),
        ("The answer is A or B", None),
        ("The answer is either (A) or (B)", None),
        ("The answer is A. The answer is B.", None),
        ("The answer is A. Wait, the answer is B.", "B"),
        ("Both A and B are correct", None),
        ("A and B", None),
        ("A/B", None),
        ("A, B", None),
        ("A, B, C and D", None),
        ("N/A", None),
        ("Answer: N/A", None),
        ("The options are (A), (B), (C), (D). The answer is: C", "C"),
        ("B is the correct answer.", "B"),
        ("B is correct because (A) is dark.", "B"),
        ("A is incorrect, so B.", "B"),
        ("I would go with B.", "B"),
        ("I'd pick (C).", "C"),
        ("My choice is D", "D"),
        ("Therefore, B.", "B"),
        ("So the answer is B", "B"),
        ("Thus, the correct answer is (D) the last", "D"),
        ("If the answer is A, the lid would be red.", None),
        ("The answer could be A or B", None),
        ("The answer could be A", None),
        ("I cannot determine the answer.", None),
        ("None of the above", None),
        ("Vitamin C is good", None),
        ("25 °C", None),
        ("C++", None),
        ("Plan B is to wait", None),
        ("The answer is A cat", None),
        ("The answer is a", None),
        ("Answer: a", "A"),
        ("Answer: E.", "E"),
        ("E coli is a bacterium", None),
        ("A. red\nB. blue\nC. green\nAnswer: C", "C"),
        ("A. red\nB. blue\nC. green", None),
        ("<|im_start|>assistant\nB<|im_end|>", "B"),
        ("B</s>", "B"),
        ("assistant: B", "B"),
        ("Answer is B", "B"),
        ("ANSWER: B", "B"),
        ("The answer is: **(B) the right jar**.", "B"),
        ("The best answer is B", "B"),
        ("The answer to this question is (B).", "B"),
        ("Based on the image, the answer is (B).", "B"),
        ("(B) the right jar", "B"),
        ("the wrong answer is A. The right answer is B", "B"),
        ("Option A is darker than option B.", None),
        ("(C) it is", "C"),
        ("Looking at the image, the point is B", None),
        ("A:the left one", "A"),
        ("B.the right one", "B"),
        ("B、右边", "B"),
        ("B．右", "B"),
        ("Let's see. A: dark. B: light. The answer is B", "B"),
        ("B - the right jar", "B"),
        ("B – the right jar", "B"),
        ("Choice: B", "B"),
        ("Selected option: B", "B"),
        ("The answer is **A** because", "A"),
        ("The correct answer is A the left jar", "A"),
        ("<answer>\\boxed{B}</answer>", "B"),
        ("Answer: (A) or (B)?", None),
        ("I'm sorry, I can't help with that", None),
        ("<CONCLUSION>B</CONCLUSION>", "B"),
        ("<REASONING>(A)</REASONING><CONCLUSION>The answer is B</CONCLUSION>", "B"),
        ("Correct Answer: B", "B"),
        ("Solution: B", "B"),
        ("The option that matches is B.", "B"),
        ("The correct answer is option B: the right jar.", "B"),
        ("The correct answer is:\n\n(B) Point B", "B"),
        ("The correct answer is:\n\n**B. yes**", "B"),
        ("B\n", "B"),
        ("(B).", "B"),
        ("Answer：B", "B"),
        ("<answer>B", "B"),
        ("It is A or it is B.", None),
        ("It's B.", "B"),
        ("Yes, B.", None),
        ("A?", "A"),
        ("I choose A", "A"),
        ("I pick the second one", None),
        ("The image B is darker than image A", None),
    ],
)
def test_what_kvfix_takes_as_an_answer_and_what_it_does_not_guess(
    text: str, letter: str | None
) -> None:
    assert extract(text) == letter


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
