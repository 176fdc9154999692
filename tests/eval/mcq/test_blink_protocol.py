"""How questions are asked: prompts, pixel limits, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import tiny

from kvfix.data.units import Question
from kvfix.eval.mcq.prompt import McqProtocol, ask, shrink

QUESTION = Question(
    *("q", "q", "Jigsaw", (tiny.photo(20, 30), tiny.photo(11, 40, seed=1))),
    *("Which?", ("one", "two"), 1),
    official_prompt="Which?\nSelect.\n(A) one\n(B) two",
    preamble="Disclaimer.\n\n",
)


def test_the_official_prompt_is_asked_word_for_word() -> None:
    prompt = ask(QUESTION, McqProtocol())
    assert prompt.text == "Disclaimer.\n\nWhich?\nSelect.\n(A) one\n(B) two"
    assert prompt.prefix is None and prompt.images is QUESTION.images
    built = ask(replace(QUESTION, official_prompt=None, preamble=""), McqProtocol())
    assert built.text == "Which?\nChoose one option:\n(A) one\n(B) two"


def test_replacing_the_choices_changes_a_built_prompt() -> None:
    built = replace(QUESTION, official_prompt=None, choices=("two", "one"))
    assert built.prompt.endswith("(A) two\n(B) one")


def test_text_first_is_a_prefix() -> None:
    prompt = ask(QUESTION, McqProtocol(order="text-first"))
    assert (prompt.text, prompt.prefix) == ("", QUESTION.preamble + QUESTION.prompt)


def test_concat_asks_about_one_image() -> None:
    [joined] = ask(QUESTION, McqProtocol(concat=True)).images
    assert joined.size == (30 + 10 + 40, 20)
    alone = replace(QUESTION, images=QUESTION.images[:1])
    assert ask(alone, McqProtocol(concat=True)).images == alone.images


@pytest.mark.parametrize("size", [(300, 200), (1, 500), (700, 1), (10, 10), (101, 1)])
@pytest.mark.parametrize("most", [1, 100, 5_000])
def test_images_shrink_to_the_limit_and_keep_their_shape(size: tuple[int, int], most: int) -> None:
    image = tiny.photo(size[1], size[0])
    found = shrink(image, most)
    assert found.width * found.height <= most or found is image
    if size[0] * size[1] <= most:
        assert found is image
    elif min(found.size) > 20:
        assert found.width / found.height == pytest.approx(size[0] / size[1], rel=0.05)
        assert found.width * found.height > 0.9 * most


def test_the_limit_holds_for_joined_images_too() -> None:
    protocol = McqProtocol(concat=True, max_pixels=400)
    [joined] = ask(QUESTION, protocol).images
    assert joined.width * joined.height <= 400
    assert [i.size for i in ask(QUESTION, McqProtocol(max_pixels=600)).images] == [
        (30, 20),
        (40, 11),
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"profile": "mine"}, "profile: expected one of kvfix, official, .* found 'mine'"),
        ({"order": "none"}, "order: expected one of images-first, text-first, found 'none'"),
        ({"form": "a"}, r"form: expected one of \(A\), A, found 'a'"),
        ({"batch": 0}, "batch: expected at least 1, found 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ({"max_pixels": 0}, "max_pixels: expected at least 1"),
        ({"version": 99}, "version: expected one of 2, found 99"),
    ],
)
def test_wrong_protocols_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        McqProtocol(**wrong)


def test_a_stamp_holds_every_setting() -> None:
    assert asdict(McqProtocol(profile="official")) == {
        "profile": "official",
        "order": "images-first",
        "concat": False,
        "form": "(A)",
        "max_new_tokens": 32,
        "batch": 8,
        "max_pixels": None,
        "version": 2,
    }
