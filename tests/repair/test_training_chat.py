"""Conversations as the chat template prints them: system turns, and answers that are context."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from kvfix.data.training.examples import Example, Turn
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.repair.batch import Collator
from kvfix.repair.chat import render

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
TALK = Example(
    "x",
    (tiny.photo(60, 100),),
    (
        Turn((None, "What is it?"), "A cat."),
        Turn(("And else?",), "A dog.", learned=False),
        Turn(("Is that all?",), "Yes."),
    ),
)
DOCTOR = "You are a doctor. Be brief."


def collated(mlm: Mlm, *examples: Example) -> tuple[str, str]:
    """The answers that are learned, and all other text."""
    batch = Collator(mlm.processor, mlm.config, mlm.family)(examples)
    said = mlm.processor.tokenizer.decode
    return said(batch.target_R[batch.answer_R]), said(batch.target_R[batch.text_R])


@FAMILIES
def test_a_system_turn_is_printed_in_place_of_the_models_own(family, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    own, with_system = (render(replace(TALK, system=s), mlm.processor) for s in ("", DOCTOR))
    assert DOCTOR not in own.text and with_system.text.count(DOCTOR) == 1
    assert with_system.asked.startswith(with_system.text[: len(with_system.asked)])
    at = with_system.text.index(DOCTOR)
    assert at < with_system.user_end <= len(with_system.asked)
    # The rest is the same, and so are the tokens that are learned.
    assert own.text.split("What is it?")[1] == with_system.text.split("What is it?")[1]
    answers = [collated(mlm, replace(TALK, system=s))[0] for s in ("", DOCTOR)]
    assert answers[0] == answers[1]
    assert DOCTOR in collated(mlm, replace(TALK, system=DOCTOR))[1]


@FAMILIES
def test_an_answer_that_is_context_gets_no_loss(family, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(family)))
    answers, text = collated(mlm, TALK)
    assert "A cat." in answers and "Yes." in answers
    assert "A dog." not in answers and "A dog." in text
    turns = tuple(turn._replace(learned=True) for turn in TALK.turns)
    assert "A dog." in collated(mlm, replace(TALK, turns=turns))[0]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}", "No"),
        ("{% if m['role'] != 'system' %}", "leaves it out"),
    ],
)
def test_a_template_without_system_turns_refuses_them_in_words(template, says, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint("llava_onevision")))
    body = (
        "{{ m['role'] }}: {% for c in m['content'] %}{{ c.get('text', '<image>') }}{% endfor %}\n"
    )
    end = "{% endif %}" if "!=" in template else ""
    mlm.processor.chat_template = (
        "{% for m in messages %}" + template + body + end + "{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert "A cat." in render(TALK, mlm.processor).text
    with pytest.raises(ValueError, match=rf"^x: expected a chat.*{says}"):
        render(replace(TALK, system=DOCTOR), mlm.processor)


def test_a_placeholder_in_a_system_turn_is_refused(checkpoint) -> None:
    mlm = load_mlm(str(checkpoint("qwen2_5_vl")))
    with pytest.raises(ValueError, match="without the placeholder"):
        render(replace(TALK, system="See <|image_pad|>."), mlm.processor)
    assert torch.is_tensor(Collator(mlm.processor, mlm.config, mlm.family)([TALK]).rows_R)
