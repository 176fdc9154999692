"""No tensor's device is taken for granted: what runs on the CPU runs on a GPU, to the same scores.

Without a GPU one is pretended (see `pretend_gpu`), in a process of its own, which then knows that
device. `pytest --device cuda` runs the same on a real one. Qwen's models are not among them: they
make Python numbers of a tensor's where nothing can pretend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from pretend_gpu import in_child, on_gpu, pretend_gpu, put, somewhere

from kvfix.data.catalog import load_units
from kvfix.data.units import MCQ
from kvfix.diagnose.flow.gallery import draw_gallery, due_pictures
from kvfix.diagnose.keys import run as keys
from kvfix.diagnose.prefix.run import diagnose_prefix
from kvfix.diagnose.surfacing.trained import ReadOut, trained_readouts
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.run import run_answers, run_readouts
from kvfix.eval.site import Site
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import run_task
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.terminal import RichWatch

KINDS = ("vision", "projector", "value")
QUESTIONS = 5


def test_every_measurement_runs_on_a_gpu(
    checkpoint: Callable[[str], Path], tmp_path: Path, device: str
) -> None:
    model = checkpoint("llava_onevision")
    alone = _measured(load_mlm(str(model), device="cpu"), tmp_path / "cpu")
    there = somewhere(device, lambda: _measured(_loaded(model, device), tmp_path / device))
    assert there.keys() == alone.keys()
    for what, scores in alone.items():
        assert there[what] == pytest.approx(scores, abs=1e-3), what


def test_a_model_spread_over_two_devices_is_measured_alike(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """As `--device auto` spreads it, by accelerate's hooks."""
    model = str(checkpoint("llava_onevision"))
    [units] = load_units(("scenes",), tasks=(MCQ,), limit=QUESTIONS, questions=True)

    def logprobs(mlm: Mlm, folder: Path) -> dict[str, Any]:
        rows = list(run_answers(units, mlm, McqProtocol(), folder).rows)
        read = run_readouts(units, MlmSource(mlm, kinds=KINDS, position=False), folder)
        choices = [row.choice for run in read for row in run.rows]
        return {"logprobs": [p for row in rows for p in row.logprobs], "choices": choices}

    def spread() -> dict[str, Any]:
        with pretend_gpu():
            mlm = load_mlm(model, device="cpu")
            layers = mlm.lm.layers
            for part in (mlm.vision, mlm.projector, mlm.lm.embed_tokens, layers[0]):
                add_hook_to_module(part, AlignDevicesHook("cpu"), append=True)
            for part in (*layers[1:], mlm.lm.norm, mlm.base.lm_head):
                add_hook_to_module(put(part), AlignDevicesHook("pretend:0"), append=True)
            return logprobs(mlm, tmp_path / "spread")

    there, alone = in_child(spread), logprobs(load_mlm(model, device="cpu"), tmp_path / "alone")
    assert there["choices"] == alone["choices"] and alone["choices"]
    assert there["logprobs"] == pytest.approx(alone["logprobs"], abs=1e-5)


def test_what_a_gpu_refuses_is_refused() -> None:
    assert in_child(lambda: dict(_refusals())) == {
        "numpy": True,
        "two devices": True,
        "generator": True,
        "a number": False,
        "an index": False,
    }


def _refusals() -> Iterator[tuple[str, bool]]:
    """Whether each of these fails there."""
    with pretend_gpu():
        x, here = torch.zeros(3, device="pretend"), torch.ones(3)
        tries: dict[str, Callable[[], Any]] = {
            "numpy": x.numpy,
            "two devices": lambda: x + here,
            "generator": lambda: x.uniform_(generator=torch.Generator()),
            "a number": lambda: x + here.sum(),
            "an index": lambda: x[torch.tensor([1])],
        }
        for what, attempt in tries.items():
            try:
                attempt()
                yield what, False
            except (RuntimeError, TypeError):
                yield what, True


def _loaded(model: Path, device: str) -> Mlm:
    """On the real GPU or the pretended one."""
    if device == "cuda":
        return load_mlm(str(model), device=device)
    return on_gpu(load_mlm(str(model), device="cpu"))


def _measured(mlm: Mlm, folder: Path) -> dict[str, list[float]]:
    """Scores of every task, answers, readouts, and what blocking keys does."""
    found: dict[str, list[float]] = {}
    probes = []
    for units in load_units(("scenes",), limit=12, questions=True):
        if units.task == MCQ:
            asked = units.head(QUESTIONS)
            answers = run_answers(asked, mlm, McqProtocol(), folder).rows
            found["answers"] = [p for row in answers for p in row.logprobs]
            source = MlmSource(mlm, kinds=KINDS, position=False)
            readouts = run_readouts(asked, source, folder)
            found["readouts"] = [row.choice for run in readouts for row in run.rows]
            continue
        probes.append(units)
        source = MlmSource(mlm, kinds=KINDS)
        best = {(units.task, units.dataset): Site("value", mlm.n_layers - 1)}
        drawn = draw_gallery(due_pictures([units.head(1)], best), source, folder)
        assert not drawn.not_drawn, drawn.not_drawn
        run = run_task(units.head(1), source, folder)
        assert not run.left_out, run.left_out
        found[units.task] = [row.score for row in run.rows]
    some = [u for u in probes if u.task == "foreground_segmentation"]
    how = {"limit": 1, "seed": 0, "watch": RichWatch()}
    with pytest.MonkeyPatch.context() as few:
        few.setattr(keys, "EPISODES", 1)
        part = keys.diagnose_keys(some, [asked], mlm, folder, McqProtocol(), **how)
    assert not part.left_out, part.left_out
    found["keys"] = [r["value"] for r in part.results]
    before = diagnose_prefix(some, mlm, folder, **{**how, "limit": 2})
    assert not before.left_out, before.left_out
    found["prefix"] = [r["value"] for r in before.results]
    source = MlmSource(mlm, kinds=("value",), position=False)
    reported: dict[str, list[str]] = {}
    for name, subtask in zip(asked.ids, asked.subtasks, strict=True):
        reported.setdefault(subtask, []).append(name)
    learned = trained_readouts(ReadOut(asked, source, folder), reported, limit=4, seed=0)
    assert learned.notes and not learned.left_out, learned  # read, and too few to train on
    for record in part.entries["keys"]["blocking"]:
        found[f"blocking {record['metric']}"] = list(record["means"].values())
    return found
