"""Measures of a trial that no command of kvfix gives: `run.py` runs it for each.

python recipes/experiment/measures.py val|rest MODEL ADAPTER DTYPE RECIPE N FILE [DATA]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import scene_mix

from kvfix.data.readers.own_questions import own_questions
from kvfix.data.scenes.paint import generator, sample_scene
from kvfix.data.scenes.talk import conversation
from kvfix.data.scenes.units import scene_units
from kvfix.data.training.examples import Example, Turn, from_question, scene_examples
from kvfix.data.training.mix import SceneMix
from kvfix.data.units import Question
from kvfix.diagnose.keys.calibration import detect, lowest_keys
from kvfix.diagnose.keys.statistics import stream_keys
from kvfix.eval.mcq.answer import answer
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.mlm.load import Mlm
from kvfix.repair.base_pass import logits_at
from kvfix.repair.batch import Collator
from kvfix.repair.terms.mean import answer_nll
from kvfix.session import ModelOptions

BATCH = 8


def val_accuracy(mlm: Mlm, mix: SceneMix, n: int, data: str = "") -> dict[str, Any]:
    """Macro accuracy by log-probability on val scenes, of the kinds of question that are trained;
    or on the first questions of `data`, whose kinds come in turn.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    units = own_questions(Path(data)) if data else scene_units("mcq", split="val", n=n)
    trained = set(units.subtasks) if data else set(mix.asked)
    n = min(n, len(units.ids))
    for start in range(0, n, BATCH):
        questions = [units.load(i) for i in range(start, min(start + BATCH, n))]
        asked = [q for q in questions if isinstance(q, Question) and q.sub_task in trained]
        for question, got in zip(
            asked, answer(mlm, asked, McqProtocol(max_new_tokens=1)), strict=True
        ):
            right[question.sub_task].append(int(np.argmax(got.logprobs)) == question.answer)
    tasks = {task: float(np.mean(of)) for task, of in right.items()}
    return {"macro": float(np.mean(list(tasks.values()))), "tasks": tasks}


def rest(mlm: Mlm, mix: SceneMix, n: int) -> dict[str, Any]:
    """Loss of text without an image, loss of talk about images, and input-agnostic keys."""
    return {"text_loss": text_loss(mlm, n), "talk_loss": talk_loss(mlm, mix, n), **keys(mlm)}


def text_loss(mlm: Mlm, n: int) -> float:
    """Nats a token of all text in test conversations that are given without their picture."""
    examples = []
    for index in range(n):
        rng = generator("test", index, "text alone")
        said = conversation(sample_scene(rng), rng, turns=4)
        turns = tuple(Turn((turn.question,), turn.answer) for turn in said)
        examples.append(Example(f"text_{index}", (), turns))
    return _nll(mlm, examples, everything=True)


def talk_loss(mlm: Mlm, mix: SceneMix, n: int) -> float:
    """Nats a token of the answers in test conversations about a picture."""
    examples = scene_examples("test", len(mix.round) * n, mix)
    talk = (examples[len(mix.round) * i + mix.round.index("talk")] for i in range(n))
    return _nll(mlm, list(talk), everything=False)


@torch.no_grad()
def _nll(mlm: Mlm, examples: list[Example], *, everything: bool) -> float:
    collator = Collator(mlm.processor, mlm.config, mlm.family)
    total = weight = 0.0
    for start in range(0, len(examples), BATCH):
        batch = collator(examples[start : start + BATCH]).moved(mlm.device, mlm.dtype)
        hidden_BLC = mlm.base.model(**batch.encoded.inputs, use_cache=False)[0]
        logits_RW = logits_at(mlm, hidden_BLC, batch.rows_R)
        counts_R = batch.answer_R | everything
        mean = answer_nll(logits_RW, batch.target_R, counts_R)
        total, weight = total + float(mean.total), weight + float(mean.weight)
    return total / weight


def keys(mlm: Mlm) -> dict[str, Any]:
    """Share of input-agnostic keys, and r of the lowest 5 %, on test questions' pictures."""
    units = scene_units("mcq", split="test", n=96)
    images = [from_question(units.load(i)).images[0] for i in range(96)]  # type: ignore[arg-type]
    found = detect(stream_keys(mlm, images).groups, seed=0)
    late = found.r_LHP[found.r_LHP.shape[0] // 2 :]
    return {
        "agnostic": float(found.agnostic_LHP.mean()),
        "tau": found.calibration.tau,
        "r_lowest": float(found.r_LHP[lowest_keys(found.r_LHP, 0.05)].mean()),
        "r_late": float(np.median(late)),
    }


def main() -> None:
    """Measure, and write a JSON file."""
    what, model, adapter, dtype, recipe, n, file, *data = sys.argv[1:]
    mlm = ModelOptions(model=model, adapter=adapter or None, dtype=dtype).load()
    found = {"val": val_accuracy, "rest": rest}[what](mlm, scene_mix(Path(recipe)), int(n), *data)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
