"""The tokens of answers such as "(A)", and the tree in which all options of a question share them.

What is scored is the text that the chat template itself would print for an assistant who answers
so: after "ASSISTANT:" LLaVA-1.5's prints " (A)" with a space. Where the template's assistant turn
does not begin as its generation prompt does, it is the bare answer. Its tokens are those that
follow the prompt's when both are tokenised as one text. Where that would merge prompt and answer,
which a model that is given the prompt's tokens cannot write, the answer is tokenised alone.

Shapes: T nodes of a tree, one a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvfix.eval.mcq.letters.parse import EVERY_LETTER

# Stands for the answer while a template is rendered; no template or word list contains it.
_MARK = "\u2042kvfix\u2042"

Tokens = tuple[int, ...]


class Step(NamedTuple):
    """One token of an answer, and the node it follows; -1 is the prompt's end."""

    after: int
    token: int


class OptionTree(NamedTuple):
    """Answers of several questions with their common beginnings merged."""

    # What to run after the prompt; the last token of an answer needs no run.
    tokens_T: tuple[int, ...]
    # The node before each; -1 is the prompt's end. A parent comes before its children.
    parents_T: tuple[int, ...]
    depth_T: tuple[int, ...]  # nodes on the way to each
    paths: list[list[list[Step]]]  # steps of each option of each question


def spelled(letter: str, form: str) -> str:
    """An answer as it is written: form "(A)" with the letter in the A's place."""
    return form.replace("A", letter)


def answer_gap(processor: Any) -> str:
    """What the chat template puts between its generation prompt and an answer."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
    asked = processor.apply_chat_template([user], add_generation_prompt=True)
    answered = processor.apply_chat_template([user, answer], add_generation_prompt=False)
    gap, mark, _ = answered.removeprefix(asked).partition(_MARK)
    return gap if mark and answered.startswith(asked) else ""


def option_tokens(
    prompts: Sequence[str], n_options: Sequence[int], *, form: str, gap: str, tokenizer: Any
) -> list[list[Tokens]]:
    """Tokens of every option's answer, in the `form` "(A)" or "A", for each rendered prompt.

    More than ten options, or some that the tokenizer cannot tell apart, are a ValueError.
    """
    answers = [gap + spelled(letter, form) for letter in EVERY_LETTER[: max(n_options)]]
    alone = _tokens(answers, tokenizer)
    out: list[list[Tokens]] = []
    for prompt, n in zip(prompts, n_options, strict=True):
        if n > len(EVERY_LETTER):
            raise ValueError(f"expected at most {len(EVERY_LETTER)} options, found {n}")
        before, *whole = _tokens([prompt, *(prompt + a for a in answers[:n])], tokenizer)
        options = [
            ids[len(before) :] if ids[: len(before)] == before else alone[i]
            for i, ids in enumerate(whole)
        ]
        if len(set(options)) < n or () in options:
            raise ValueError(
                f"expected a tokenizer that tells {', '.join(answers[:n])} apart, found the tokens "
                f"{options}"
            )
        out.append(options)
    return out


def _tokens(texts: list[str], tokenizer: Any) -> list[Tokens]:
    return [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def option_tree(tokens: Sequence[Sequence[Tokens]]) -> OptionTree:
    """Merge the common beginnings of each question's answers."""
    node_of: dict[Tokens, int] = {(): -1}
    parents: list[int] = []
    for answer in (a for options in tokens for a in options):
        for end in range(1, len(answer)):
            if answer[:end] not in node_of:
                node_of[answer[:end]] = len(parents)
                parents.append(node_of[answer[: end - 1]])
    ways = [way for way in node_of if way]
    paths = [
        [[Step(node_of[a[:i]], token) for i, token in enumerate(a)] for a in options]
        for options in tokens
    ]
    return OptionTree(
        tuple(way[-1] for way in ways), tuple(parents), tuple(len(w) - 1 for w in ways), paths
    )
