"""Answer multiple-choice questions twice from one pass: in writing, and by the probability of each
option's letter. No disk is touched.

Questions of a batch are padded to one length, so in low precision (and in the last bits also in
float32) scores depend on which questions share a batch: `McqProtocol.batch` belongs to a run's
fingerprint, and a run that resumes must form the same batches.

Shapes: B questions of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from kvfix.data.units import Question
from kvfix.eval.mcq.letters.parse import EVERY_LETTER, Letter, extract
from kvfix.eval.mcq.options import OptionTree, answer_gap, option_tokens, option_tree
from kvfix.eval.mcq.prefill import Prefill
from kvfix.eval.mcq.prompt import McqProtocol, ask
from kvfix.mlm.load import Encoded, Mlm, Prompt
from kvfix.mlm.prompts import Around


class Answer(NamedTuple):
    """One question as a model answered it."""

    text: str  # what it wrote
    letter: Letter  # the option that the profile's rules read from that, or UNPARSED
    # For each option, in nats: of the whole answer; its mean over tokens if `per_token`. None where
    # whoever answered gives no probabilities.
    logprobs: tuple[float, ...] | None = None
    logprob_letter: str | None = None  # the most probable option, the first of equals
    # Whether options differ in their number of tokens, so that sums would favour the shorter.
    per_token: bool = False


class Scores(NamedTuple):
    """The log-probability part of an `Answer`."""

    logprobs: tuple[float, ...]
    letter: str
    per_token: bool


def answer(mlm: Mlm, questions: Sequence[Question], protocol: McqProtocol) -> list[Answer]:
    """Answer questions, each on one to four images, `protocol.batch` at a time, in their order.

    What cannot be asked so that it counts is a ValueError: a chat template that does not keep the
    order of text and images, attention that takes no mask, logits that are not finite.
    """
    out: list[Answer] = []
    for start in range(0, len(questions), protocol.batch):
        batch = questions[start : start + protocol.batch]
        encoded, tree = _asked(mlm, batch, protocol)
        prefill = Prefill(mlm, encoded)
        scores = _scored(prefill, tree)
        texts = prefill.write(protocol.max_new_tokens)
        for question, text, score in zip(batch, texts, scores, strict=True):
            letter = extract(text, protocol.profile, options=question.choices)
            out.append(Answer(text, letter, score.logprobs, score.letter, score.per_token))
    return out


def score_options(mlm: Mlm, questions: Sequence[Question], protocol: McqProtocol) -> list[Scores]:
    """The log-probability part of `answer` alone."""
    [scores] = score_under(mlm, questions, protocol, [None])
    return scores


def score_under(
    mlm: Mlm,
    questions: Sequence[Question],
    protocol: McqProtocol,
    conditions: Sequence[Around | None],
) -> list[list[Scores]]:
    """`score_options` under each condition, which is held open while a batch is run."""
    out: list[list[Scores]] = [[] for _ in conditions]
    for start in range(0, len(questions), protocol.batch):
        batch = questions[start : start + protocol.batch]
        encoded, tree = _asked(mlm, batch, protocol)
        for scores, around in zip(out, conditions, strict=True):
            with nullcontext() if around is None else around(encoded):
                scores += _scored(Prefill(mlm, encoded), tree)
    return out


def _asked(
    mlm: Mlm, questions: Sequence[Question], protocol: McqProtocol
) -> tuple[Encoded, OptionTree]:
    prompts = [ask(question, protocol) for question in questions]
    encoded = mlm.encode(prompts, padding_side="left")
    _check_order(prompts, encoded, mlm.processor)
    tokens = option_tokens(
        encoded.order_texts,
        [len(question.choices) for question in questions],
        form=protocol.form,
        gap=answer_gap(mlm.processor),
        tokenizer=mlm.processor.tokenizer,
    )
    return encoded, option_tree(tokens)


def _scored(prefill: Prefill, tree: OptionTree) -> list[Scores]:
    found = prefill.option_logprobs(tree)
    return [_scores([path.tolist() for path in options]) for options in found]


def _scores(options: list[list[float]]) -> Scores:
    """Sums where all options have as many tokens, else means."""
    per_token = len({len(path) for path in options}) > 1
    logprobs = tuple(sum(path) / (len(path) if per_token else 1) for path in options)
    return Scores(logprobs, EVERY_LETTER[logprobs.index(max(logprobs))], per_token)


def _check_order(prompts: Sequence[Prompt], encoded: Encoded, processor: Any) -> None:
    """Many chat templates print all images before the text, whatever the order of the parts."""
    for prompt, rendered in zip(prompts, encoded.order_texts, strict=True):
        text, first = (prompt.prefix or prompt.text).strip(), prompt.prefix is not None
        at, mark = rendered.rfind(text), processor.image_token
        kept = at < rendered.find(mark) if first else at > rendered.rfind(mark)
        if at < 0 or not kept:
            raise ValueError(
                f"order: expected a chat template that prints the "
                f"{'text before the images' if first else 'images before the text'}, found one "
                "that does not; choose the other order"
            )
