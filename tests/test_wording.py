"""What messages show of data and of libraries."""

from __future__ import annotations

import time

import pytest

from kvfix.wording import cause, shown


def test_a_short_message_is_whole_and_on_one_line() -> None:
    assert cause(ValueError("no such\n   file")) == "no such file"


def test_an_empty_message_is_the_name_of_its_class() -> None:
    assert cause(KeyError()) == "KeyError"


def test_sentences_after_the_first_cause_are_left_out_whole() -> None:
    long = "Cannot load it. " + "Make sure that the folder has the file and the class exists. " * 9
    found = cause(OSError(long), limit=120)
    assert found == (
        "Cannot load it. Make sure that the folder has the file and the class exists. ..."
    )


def test_a_first_cause_longer_than_the_limit_stays_whole() -> None:
    sentence = "Unrecognised processor in " + "a/" * 150 + "b, which has no key"
    assert cause(ValueError(f"{sentence}. See the docs."), limit=50) == f"{sentence}. ..."


def test_what_a_heading_announces_belongs_to_the_first_cause() -> None:
    text = (
        "Error(s) in loading state_dict for PeftModel:\n"
        "\tsize mismatch for a.lora_A: copying torch.Size([4, 32]), the model has [4, 64].\n"
        + "\tsize mismatch for b.lora_A: the same.\n"
        * 50
    )
    found = cause(RuntimeError(text), limit=40)
    assert found.startswith("Error(s) in loading state_dict for PeftModel: size mismatch for a.lor")
    assert found.endswith("the model has [4, 64]. ...")


def test_endless_data_is_cut_between_words() -> None:
    names = " ".join(f"'model_{i}'," for i in range(2000))
    found = cause(ValueError(f"Should be one of {names}"))
    assert len(found) < 620
    assert found.endswith(", ...")


def test_no_length_of_message_or_value_takes_long() -> None:
    start = time.monotonic()
    for text in ("a" * 10**7, "a. B" * 10**6, ":\n" * 10**6):
        assert len(cause(text)) < 700
        assert len(shown(text)) == 60
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("value", "found"),
    [("word", "'word'"), ({"a": [1]}, "{'a': [1]}"), ("x" * 99, "'" + "x" * 56 + "...")],
)
def test_values_are_shown_as_python_writes_them(value: object, found: str) -> None:
    assert shown(value) == found
