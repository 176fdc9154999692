"""Tokens of option answers, and the tree that merges their beginnings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
from jinja2 import Template
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvfix.eval.mcq.options import answer_gap, option_tokens, option_tree, spelled
from kvfix.eval.mcq.prefill import ancestors

# As llava-hf's LLaVA-1.5, LLaVA-OneVision and LLaVA-NeXT (Mistral) print a turn, in short.
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>\n' }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>' }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>\n' }}{% endfor %} [/INST]{% else %}"
    "{{ ' ' + m['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"
)
NO_ASSISTANT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{% for c in m['content'] %}"
    "{{ c['text'] if c['type'] == 'text' else '<image>' }}{% endfor %}{% endif %}{% endfor %}"
)


def _processor(template: str) -> SimpleNamespace:
    return SimpleNamespace(
        apply_chat_template=lambda messages, **more: Template(template).render(
            messages=messages, **more
        )
    )


@pytest.mark.parametrize(
    ("template", "gap"),
    [
        (VICUNA, " "),
        (MISTRAL, " "),
        (ONEVISION, ""),  # its assistant turn begins otherwise than its generation prompt
        (NO_ASSISTANT, ""),
        (tiny.TEMPLATE, ""),
    ],
)
def test_the_gap_is_what_the_template_prints_before_an_answer(template: str, gap: str) -> None:
    assert answer_gap(_processor(template)) == gap


def _tokenizer(*merges: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with some merges; no text is cut into words before."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(m.split()) for m in merges]
    vocab = {c: i for i, c in enumerate([*alphabet, *("".join(p) for p in pairs)])}
    words = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def _spelt(tok: PreTrainedTokenizerFast, options: list) -> list[list[str]]:
    return [tok.convert_ids_to_tokens(list(ids)) for ids in options]


def test_tokens_are_those_after_the_prompt() -> None:
    tok = _tokenizer("( A", "B )")
    [options] = option_tokens(["Which? "], [3], form="(A)", gap="", tokenizer=tok)
    assert _spelt(tok, options) == [["(A", ")"], ["(", "B)"], ["(", "C", ")"]]
    [options] = option_tokens(["Which? "], [2], form="A", gap=" ", tokenizer=tok)
    assert _spelt(tok, options) == [["Ġ", "A"], ["Ġ", "B"]]


def test_what_would_merge_with_the_prompt_is_tokenised_alone() -> None:
    tok = _tokenizer(": (")
    prompts = ["ASSISTANT:", "ASSISTANT: "]
    merged, whole = option_tokens(prompts, [2, 1], form="(A)", gap="", tokenizer=tok)
    assert tok.convert_ids_to_tokens(tok("T:(A)")["input_ids"]) == ["T", ":(", "A", ")"]
    assert _spelt(tok, merged) == [["(", "A", ")"], ["(", "B", ")"]]
    assert _spelt(tok, whole) == [["(", "A", ")"]]


def test_options_that_look_the_same_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"?": 0, "(": 1, ")": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Punctuation()
    tok = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    with pytest.raises(ValueError, match=r"a tokenizer that tells \(A\), \(B\) apart"):
        option_tokens(["?"], [2], form="(A)", gap="", tokenizer=tok)
    with pytest.raises(ValueError, match="at most 10 options, found 11"):
        option_tokens(["?"], [11], form="(A)", gap="", tokenizer=_tokenizer())


def test_letters_are_spelled_in_the_form() -> None:
    assert [spelled("B", form) for form in ("(A)", "A")] == ["(B)", "B"]


def test_a_tree_holds_each_common_beginning_once() -> None:
    one = [(5, 6, 8), (5, 7, 8)]  # ( A ), ( B )
    two = [(5, 6, 8), (5, 7, 8), (9, 8), (4,)]  # also (C ), and one token alone
    tree = option_tree([one, two])
    assert tree.tokens_T == (5, 6, 7, 9)
    assert tree.parents_T == (-1, 0, 0, -1) and tree.depth_T == (0, 1, 1, 0)
    assert [[tuple(s) for s in path] for path in tree.paths[1]] == [
        [(-1, 5), (0, 6), (1, 8)],
        [(-1, 5), (0, 7), (2, 8)],
        [(-1, 9), (3, 8)],
        [(-1, 4)],
    ]
    assert tree.paths[0] == tree.paths[1][:2]
    assert ancestors(tree.parents_T).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert option_tree([[(1,), (2,)]]).tokens_T == ()
