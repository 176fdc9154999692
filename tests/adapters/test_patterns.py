"""Regexes of users and of adapters: matched as `re` does, within bounds."""

from __future__ import annotations

import re
import time

import pytest

from kvfix.adapters.patterns import Pattern, is_name
from kvfix.repair.lora import LoraOptions

NAMES = [
    f"model.language_model.layers.{i}.self_attn.{x}_proj" for i in range(80) for x in "qkvo"
] + [f"model.vision_tower.encoder.layers.{i}.mlp.fc{n}" for i in range(40) for n in (1, 2)]

# What PEFT's users, ms-swift, unsloth and LLaMA-Factory write.
HONEST = [
    ".*",
    r".*language_model.*\.(q_proj|v_proj)",
    r"^(model\.language_model(?=\.).*\.(q_proj|k_proj|v_proj|o_proj))$",
    r"^(?!.*vision_tower).*(?:q_proj|fc1).*$",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|o_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))",
    r"model\.language_model\.layers\.(1[0-9]|2[0-7])\.self_attn\.[qkvo]_proj",
    "|".join(re.escape(name) for name in NAMES),
]
EXPLODING = [
    r"(.*)*x",
    r"([a-z_.0-9]+)+!",
    r"(?:(?:[\w.]+)+)+!",
    r"^(([a-z_.])+.)+[A-Z]([a-z])+$",
    ".*" * 12 + "=",
    "(.|.)" * 40 + "!",
    r"(?:(?=(.*))\1?.?)*?(.|..|...)*(\1|.)*Z",
]


@pytest.mark.parametrize("text", HONEST)
def test_an_honest_pattern_finds_what_re_finds(text: str) -> None:
    found = Pattern(text, what="only").matching(NAMES)
    assert found == [name for name in NAMES if re.fullmatch(text, name)]
    assert found


@pytest.mark.parametrize("text", EXPLODING)
def test_a_pattern_that_explodes_ends(text: str) -> None:
    start = time.process_time()
    try:
        assert Pattern(text, what="only").matching(NAMES) == []
    except ValueError as error:
        assert "only: expected a regex that matches 400 module names within 1 s" in str(error)
        assert len(str(error)) < 300
    assert time.process_time() - start < 10  # `re` needs years


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(", "only: expected a regex, found '\\('"),
        ("a{1000}{2}", "expected a regex, found"),
        ("(?:(?:a{1000}){1000}){1000}", "with its repeats written out"),
        ("(?:a{99999999999999999999})", "with its repeats written out"),
        ("x" * 60_000, "of at most 50000 characters"),
        ("(?:" * 5000 + "a" + ")" * 5000, "expected a regex, found"),
        ("(?R)", "expected a regex, found"),  # `regex` knows it, `re` does not
    ],
)
def test_what_is_no_pattern_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        Pattern(text, what="only").matching(NAMES)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_the_time_limit_is_of_all_names_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvfix.adapters.patterns.SECONDS", 0.0)
    with pytest.raises(ValueError, match="a repeat inside a repeat explodes"):
        Pattern("(.|.)*(.|..)*=", what="only").matching(NAMES * 20)


def test_a_plain_name_is_one() -> None:
    assert is_name("q_proj") and is_name("model.layers.0.mlp") and is_name(r"layers\.0")
    assert not is_name(".*q_proj") and not is_name("(a|a)") and not is_name("")


def test_lora_options_refuse_an_only_that_is_no_regex() -> None:
    with pytest.raises(ValueError, match="only: expected a regex, found '\\('"):
        LoraOptions(only="(")
