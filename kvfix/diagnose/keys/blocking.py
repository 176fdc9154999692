"""What do chosen image keys do? Block them, and see whether answers and values change.

Text queries first: without edges from the text to the chosen keys the image's states stay the same
to the last bit, so only answers can move. Then image queries: without edges from later image
tokens to them the values themselves move, and probes can tell.

Every effect stands beside the same with equally many random keys of the same layers and heads, and
beside a control that blocks nothing and must reproduce the model bit for bit.

Shapes: L layers, H KV heads, N units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kvfix.data.left_out import Attempts, LeftOut, attempted
from kvfix.data.units import Episode, Question
from kvfix.eval.mcq.answer import Scores, score_under
from kvfix.eval.mcq.letters.parse import EVERY_LETTER
from kvfix.eval.mcq.prompt import McqProtocol, ask
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.source import MlmSource
from kvfix.eval.stats.bootstrap import paired_bootstrap
from kvfix.findings import Estimate
from kvfix.mlm.intervene import Edit, Keys, intervene, on_tokens, random_keys
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Encoded, Mlm
from kvfix.mlm.prompts import Around
from kvfix.ranks import Jury, in_order

CONDITIONS = ("base", "nothing", "chosen", "random")


@dataclass
class Effects:
    """Scores of the same units under each condition."""

    metric: str  # of the scores
    unit: str  # what a unit is
    # Condition -> one number a unit.
    scores: dict[str, list[float]] = field(default_factory=lambda: {c: [] for c in CONDITIONS})
    clusters: list[str] = field(default_factory=list)  # one label a unit
    skipped: int = 0  # units of another grid than the keys', which no condition scores
    left_out: dict[str, str] = field(default_factory=dict)  # why units have no score, by id


def _blocked(mlm: Mlm, queries: str, keys_of: Callable[[Encoded], Keys] | None) -> Around:
    """Blocks edges from the queries to keys; None blocks an empty set."""

    def around(encoded: Encoded) -> AbstractContextManager[None]:
        edits = [] if keys_of is None else [Edit(queries, keys_of(encoded), scale=0.0)]  # type: ignore[arg-type]
        return intervene(mlm, encoded, edits)

    return around


def conditions(
    mlm: Mlm, queries: str, cells_LHHW: torch.Tensor, *, seed: int, batch: int
) -> dict[str, Around | None]:
    """What each condition holds open for one batch; queries are "text" or "image".

    The chosen keys are by layer, KV head and cell of the image's grid. Random ones are drawn from
    the seed and the batch's number, so that they do not depend on which rank does which batch.
    """
    [drawn_from] = np.random.SeedSequence((seed, batch)).generate_state(1).tolist()
    generator = torch.Generator().manual_seed(drawn_from)

    def chosen(encoded: Encoded) -> Keys:
        return [[on_tokens(cells_LHHW, s.layout) for s in spans] for spans in encoded.images]

    def random(encoded: Encoded) -> Keys:
        # From the grid's cells only: base tile and newlines cannot be chosen either.
        everything = torch.ones(cells_LHHW.shape[-2:], dtype=torch.bool)

        def drawn(layout: Layout) -> torch.Tensor:
            among = on_tokens(everything, layout)
            keys = random_keys(on_tokens(cells_LHHW, layout), generator, among=among)
            assert isinstance(keys, torch.Tensor)
            return keys

        return [[drawn(s.layout) for s in spans] for spans in encoded.images]

    return {
        "base": None,
        "nothing": _blocked(mlm, queries, None),
        "chosen": _blocked(mlm, queries, chosen),
        "random": _blocked(mlm, queries, random),
    }


def answer_effects(
    mlm: Mlm,
    questions: Sequence[Question],
    cells_LHHW: torch.Tensor,
    protocol: McqProtocol,
    *,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Effects]:
    """Accuracy by log-probability, and the log-probability of the right option, in nats.

    The model's attention is "sdpa" or "eager"; all images are on the grid of the keys. `tick` is
    called after each question and condition.
    """
    accuracy = Effects("accuracy by log-probability", "question")
    nats = Effects("log-probability of the right option", "question")
    attempts = Attempts(len(questions), jury=Jury())
    batches = [
        questions[start : start + protocol.batch]
        for start in range(0, len(questions), protocol.batch)
    ]

    def done(number: int) -> list[dict[str, Scores] | LeftOut]:
        around = conditions(mlm, "text", cells_LHHW, seed=seed, batch=number)

        def scored(batch: list[Question]) -> list[dict[str, Scores]]:
            found = score_under(mlm, batch, protocol, list(around.values()))
            return [dict(zip(around, of_one, strict=True)) for of_one in zip(*found, strict=True)]

        return attempts.batch(batches[number], lambda question: question, scored)

    def told(number: int) -> None:
        for _ in range(len(batches[number]) * len(CONDITIONS)):
            tick()

    of_batches = in_order(len(batches), done, told, then=attempts.finish)
    found = [got for of_batch in of_batches for got in of_batch]
    for question, got in zip(questions, found, strict=True):
        if isinstance(got, LeftOut):
            accuracy.left_out[question.id] = got.why
            continue
        accuracy.clusters.append(question.cluster)
        for name in CONDITIONS:
            right = got[name].letter == EVERY_LETTER[question.answer]
            accuracy.scores[name].append(float(right))
            # Of the options only: what other words are likely does not count.
            among = torch.tensor(got[name].logprobs, dtype=torch.float64).log_softmax(0)
            nats.scores[name].append(float(among[question.answer]))
    nats.clusters, nats.left_out = accuracy.clusters, accuracy.left_out
    return [accuracy, nats]


def on_grid(mlm: Mlm, question: Question, grid_hw: tuple[int, int], protocol: McqProtocol) -> bool:
    """Whether every image of a question lies on the keys' grid when it is asked."""
    [spans] = mlm.encode([ask(question, protocol)]).images
    return all(s.layout.grid_hw == grid_hw for s in spans)


def probe_effects(
    mlm: Mlm,
    episodes: Sequence[Episode],
    cells_LHHW: torch.Tensor,
    *,
    layer: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> Effects:
    """Few-shot foreground IoU of one value layer with image -> image edges blocked.

    All images are on the grid of the keys. `tick` is called after each episode and condition.
    """
    effects = Effects("IoU", "episode")

    def scored(number: int) -> list[float]:
        around = conditions(mlm, "image", cells_LHHW, seed=seed, batch=number)
        found = []
        for name in CONDITIONS:
            source = MlmSource(mlm, kinds=("value",), position=False, around=around[name])
            scores = TASKS["foreground_segmentation"].run(episodes[number], source, None)
            found.append(float(scores["value"].score_S[layer]))
        return found

    def told(number: int) -> None:
        for _ in CONDITIONS:
            tick()

    for episode, got in zip(episodes, attempted(len(episodes), scored, told), strict=True):
        if isinstance(got, LeftOut):
            effects.left_out[episode.id] = got.why
            continue
        effects.clusters.append(episode.cluster)
        for name, score in zip(CONDITIONS, got, strict=True):
            effects.scores[name].append(score)
    return effects


def effect_record(effects: Effects, *, queries: str, chosen: str, seed: int) -> dict[str, Any]:
    """Means and paired differences, for run.json."""
    differences = {}
    for name, (after, before) in {
        "chosen_base": ("chosen", "base"),
        "random_base": ("random", "base"),
        "chosen_random": ("chosen", "random"),
    }.items():
        scores = (np.array(effects.scores[condition]) for condition in (before, after))
        got = Estimate.of(paired_bootstrap(*scores, effects.clusters, seed=seed))
        found = got.to_json()
        differences[name] = {"value": found["value"], "ci": found["ci"], "clear": got.clear}
    same = effects.scores["nothing"] == effects.scores["base"]
    return {
        "queries": queries,
        "keys": chosen,
        "metric": effects.metric,
        "n": len(effects.clusters),
        "unit": effects.unit,
        "skipped": effects.skipped,
        "means": {c: float(np.mean(s)) for c, s in effects.scores.items()},
        "differences": differences,
        "nothing_is_base": same,
    }
