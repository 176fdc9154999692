"""Conversations as the model's chat template prints them, and where in the text the answers are.

Positions are of characters in the rendered text, in which every image is one placeholder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError

from kvfix.data.training.examples import Example, Turn
from kvfix.mlm.prompts import MARK, text_suffix
from kvfix.wording import cause


class Chat(NamedTuple):
    """A rendered conversation."""

    text: str  # all of it; for an example without images it ends with a placeholder (a stand-in)
    asked: str  # what stands before the first answer, generation prompt included
    user_end: int  # where the first user's text ends
    # (start, end) of every answer and what the template closes it with.
    answers: tuple[tuple[int, int], ...]
    end: int  # where the conversation ends, and a stand-in begins


def render(example: Example, processor: Any) -> Chat:
    """Print a conversation.

    An empty answer before the last turn, placeholders that are not as many as the images, and a
    template that does not print a conversation in the order of its turns are ValueErrors.
    """
    check(example, processor)
    messages = _system(example)
    answers = []
    text = ""
    for number, turn in enumerate(example.turns):
        messages.append(_user(turn))
        asked = _printed(messages, example, processor)
        if number == 0:
            first = asked
            if example.system.strip() not in asked:
                raise ValueError(
                    f"{example.id}: expected a chat template that prints a system turn, found one "
                    "that leaves it out; remove the system turns, or put them into the first "
                    "question"
                )
        if not turn.answer:
            text = asked
            break
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        text = processor.apply_chat_template(messages, add_generation_prompt=False)
        if not text.startswith(asked):
            raise ValueError(
                f"{example.id}: expected a chat template whose assistant turn begins as its "
                f"generation prompt does, found ...{asked[-40:]!r} and ...{text[-60:]!r}"
            )
        if turn.learned:
            answers.append((len(asked), len(text)))
    stand_in = "" if example.images else _placeholder(processor)
    return Chat(
        text + stand_in, first, _user_end(example, first, processor), tuple(answers), len(text)
    )


def check(example: Example, processor: Any) -> None:
    """Refuse an example that cannot be printed; see `render`."""
    wanted = sum(part is None for turn in example.turns for part in turn.user)
    if wanted != len(example.images):
        raise ValueError(
            f"{example.id}: expected one placeholder for each of {len(example.images)} images, "
            f"found {wanted}"
        )
    if not example.turns or any(not turn.answer for turn in example.turns[:-1]):
        raise ValueError(
            f"{example.id}: expected turns that all but the last have an answer, found "
            f"{[turn.answer for turn in example.turns]}"
        )
    said = (part for turn in example.turns for part in (*turn.user, turn.answer))
    for text in (part for part in (example.system, *said) if part):
        for token in processor.all_special_multimodal_tokens:
            if token in text:
                raise ValueError(
                    f"{example.id}: expected text without the placeholder {token!r}, found it; the "
                    "processor would put an image there"
                )


def _printed(messages: list[dict[str, Any]], example: Example, processor: Any) -> str:
    """The chat so far; what a template says against it (of a system turn, of roles) in one line."""
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(
            f"{example.id}: expected a chat that this model's template prints, found one that it "
            f"refuses: {cause(error)}"
        ) from error


def _system(example: Example) -> list[dict[str, Any]]:
    if not example.system:
        return []
    return [{"role": "system", "content": [{"type": "text", "text": example.system}]}]


def _user(turn: Turn) -> dict[str, Any]:
    content = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in turn.user
    ]
    return {"role": "user", "content": content}


def _user_end(example: Example, asked: str, processor: Any) -> int:
    """End of the last text of the first turn, found by printing another one in its place."""
    turn = example.turns[0]
    last = max((i for i, part in enumerate(turn.user) if part is not None), default=None)
    if last is None:
        return len(asked)
    user = tuple(MARK if i == last else part for i, part in enumerate(turn.user))
    other = [*_system(example), _user(Turn(user, ""))]
    marked = processor.apply_chat_template(other, add_generation_prompt=True)
    return len(asked) - len(text_suffix(asked, marked))


def _placeholder(processor: Any) -> str:
    turn = Turn((MARK, None, MARK), "")
    printed = processor.apply_chat_template([_user(turn)], add_generation_prompt=True)
    _, between, _ = printed.split(MARK)
    return between
