"""What a shared prefill saves: multiple-choice questions a second, beside the plain way.

    python benchmarks/mcq.py                                   # the shipped nano, scenes
    python benchmarks/mcq.py nano DIR --data blink=DIR         # nano and another model, BLINK

A few minutes on two idle cores (`--limit 8` for a larger model). Goal: at least 2x the questions a
second of generating and scoring each answer separately, at equal letters (the last row). The plain
way runs batch 1: `generate` for the written answer, and one forward pass of prompt and answer for
each option; images are processed once a question in either way. The other rows tell how much of
that comes from the options alone, and from sharing without batching; with two options a question,
sharing can save half the passes at most.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from kvfix.data.catalog import load_units
from kvfix.data.units import MCQ, Question
from kvfix.eval.mcq.answer import answer, score_options
from kvfix.eval.mcq.letters.suite_rules import LETTERS
from kvfix.eval.mcq.options import answer_gap, option_tokens
from kvfix.eval.mcq.prefill import GREEDY
from kvfix.eval.mcq.prompt import McqProtocol, ask
from kvfix.eval.mcq.run import batches
from kvfix.mlm.load import Encoded, Mlm, load_mlm
from kvfix.shipped import nano_dir

GOAL = 2.0


class Way(NamedTuple):
    """One way to answer: what it is called, which way it is compared with, and the work."""

    name: str
    base: str | None
    run: Callable[[Sequence[Question]], list[str]]  # questions -> letters by log-probability
    goal: bool = False  # whether the goal is of this way; others are for comparison


def main() -> None:
    """One table over all models named; stops where letters differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nano"], help="nano, a hub id or a folder")
    parser.add_argument("--data", default="scenes", help="scenes or blink=DIR")
    parser.add_argument("--limit", type=int, default=72, help="questions")
    parser.add_argument("--batch", type=int, default=McqProtocol().batch)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapter")
    options = parser.parse_args()
    [units] = load_units((options.data,), tasks=[MCQ], limit=options.limit, questions=True)
    questions = [q for i in range(len(units)) if isinstance(q := units.load(i), Question)]
    title = f"multiple choice, {len(questions)} questions of {units.dataset}, {options.dtype}"
    table = Table("model", "way", "base", "questions/s", "ratio", "goal", "letters", title=title)
    for name in options.models:
        folder = str(nano_dir()) if name == "nano" else name
        mlm = load_mlm(folder, adapter=options.adapter, dtype=getattr(torch, options.dtype))
        for row in measure(mlm, questions, McqProtocol(batch=options.batch)):
            table.add_row(Path(folder).name, *row)
    Console(width=140).print(table)


def measure(
    mlm: Mlm, questions: Sequence[Question], protocol: McqProtocol
) -> list[tuple[str, str, str, str, str, str]]:
    """Every way on the same questions, in turn within each round of one batch (of one task).

    Raises:
        SystemExit: a way chooses other letters than the one it is compared with.
    """
    alone = McqProtocol(batch=1)
    ways = [
        Way("one forward an option", None, lambda qs: plain(mlm, qs, protocol, write=False)),
        Way(
            f"options, shared prefill, batch {protocol.batch}",
            "one forward an option",
            lambda qs: [s.letter for s in score_options(mlm, qs, protocol)],
        ),
        Way(
            "options, shared prefill, batch 1",
            "one forward an option",
            lambda qs: [s.letter for s in score_options(mlm, qs, alone)],
        ),
        Way("generate + one forward an option", None, lambda qs: plain(mlm, qs, protocol)),
        Way(
            f"written and options, shared prefill, batch {protocol.batch}",
            "generate + one forward an option",
            lambda qs: [a.logprob_letter for a in answer(mlm, qs, protocol)],
            goal=True,
        ),
    ]
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    letters: dict[str, list[str]] = {way.name: [] for way in ways}
    for way in ways:
        way.run(questions[:1])  # warms up
    for members in batches([q.id for q in questions], protocol.batch):
        batch = [questions[i] for i in members]
        for way in ways:
            begun = time.perf_counter()
            letters[way.name] += way.run(batch)
            seconds[way.name].append(time.perf_counter() - begun)
    return [_row(way, seconds, letters) for way in ways]


def _row(
    way: Way, seconds: dict[str, list[float]], letters: dict[str, list[str]]
) -> tuple[str, str, str, str, str, str]:
    speed = f"{len(letters[way.name]) / sum(seconds[way.name]):.2f}"
    if way.base is None:
        return way.name, "", speed, "", "", ""
    # Of all rounds together: tasks differ in images and options. The ways take turns within each
    # round, so that the machine's load moves them alike.
    ratio = sum(seconds[way.base]) / sum(seconds[way.name])
    same = sum(a == b for a, b in zip(letters[way.base], letters[way.name], strict=True))
    n = len(letters[way.name])
    if same < n:
        raise SystemExit(f"{way.name}: expected the letters of {way.base}, found {n - same} others")
    goal = f">= {GOAL:.1f}x" if way.goal else ""
    return way.name, way.base, speed, f"{ratio:.2f}x", goal, f"{same}/{n} equal"


def plain(
    mlm: Mlm, questions: Sequence[Question], protocol: McqProtocol, *, write: bool = True
) -> list[str]:
    """Letters by log-probability, each option for itself; also generates if `write`."""
    gap = answer_gap(mlm.processor)
    out = []
    for question in questions:
        encoded = mlm.encode([ask(question, protocol)])
        if write:
            given = {k: v for k, v in encoded.inputs.items() if k != "position_ids"}
            mlm.base.generate(**given, max_new_tokens=protocol.max_new_tokens, **GREEDY)
        [tokens] = option_tokens(
            encoded.order_texts,
            [len(question.choices)],
            form=protocol.form,
            gap=gap,
            tokenizer=mlm.processor.tokenizer,
        )
        scores = [_score(mlm, encoded, ids) for ids in tokens]
        out.append(LETTERS[scores.index(max(scores))])
    return out


def _score(mlm: Mlm, encoded: Encoded, answer_ids: tuple[int, ...]) -> float:
    """Log-probability of one answer by a forward pass of its own over prompt and answer."""
    new_1N = torch.tensor([answer_ids], device=mlm.device)
    n = new_1N.shape[1]
    inputs = dict(encoded.inputs)
    inputs["input_ids"] = torch.cat((inputs["input_ids"], new_1N), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs.pop("position_ids", None)  # one prompt, nothing padded: the model counts right
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat((kinds, torch.zeros_like(new_1N)), dim=1)
    with torch.inference_mode():
        logits_1NV = mlm.model(**inputs, use_cache=False, logits_to_keep=n + 1).logits[:, :-1]
    logprobs_1NV = logits_1NV.float().log_softmax(-1)
    return float(logprobs_1NV.gather(-1, new_1N[..., None]).sum())


if __name__ == "__main__":
    main()
