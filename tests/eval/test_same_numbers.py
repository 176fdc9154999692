"""The same model and data give the same scores: twice, in any order, batch and number of threads.

Float32 on the CPU. Padding and threads change the order in which sums are taken, hence the bound of
1e-5; what is done twice in the same way is equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfix.data.catalog import load_units
from kvfix.data.units import UnitSet
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.run import run_answers, run_readouts
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import run_task
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.runs.rows import to_json

FAMILIES = ("llava_onevision", "qwen2_5_vl", "llava_next")
TASKS = ("semantic_correspondence", "referring_segmentation")
BOUND = 1e-5
Rows = dict[tuple[Any, ...], dict[str, Any]]


@pytest.fixture(scope="module", params=FAMILIES)
def mlm(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Mlm:
    return load_mlm(str(checkpoint(request.param)), dtype="float32")


def units(task: str, n: int) -> UnitSet:
    [found] = load_units(("scenes",), tasks=(task,), limit=n, questions=True)
    return found


def turned(of: UnitSet) -> UnitSet:
    """The same units, the last one first."""
    return of.subset(range(len(of) - 1, -1, -1))


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def by_place(rows: Any) -> Rows:
    """Rows by what they are a score of."""
    return {
        (r.id, *(getattr(r, k, None) for k in ("site", "layer", "head"))): to_json(r) for r in rows
    }


def probed(mlm: Mlm, of: UnitSet, folder: Path) -> Rows:
    return by_place(run_task(of, MlmSource(mlm), folder).rows)


def answered(mlm: Mlm, of: UnitSet, folder: Path, batch: int) -> Rows:
    protocol = McqProtocol(batch=batch, max_new_tokens=4)
    return by_place(run_answers(of, mlm, protocol, folder).rows)


def close(a: Rows, b: Rows, key: str) -> None:
    assert a.keys() == b.keys() and a
    for place in a:
        assert a[place][key] == pytest.approx(b[place][key], abs=BOUND, rel=0), place


def test_probes_are_the_same_twice_and_in_any_order(mlm: Mlm, tmp_path: Path) -> None:
    for task in TASKS:
        of = units(task, 4)
        once, again = (probed(mlm, of, tmp_path / name) for name in ("once", "again"))
        assert once == again
        assert probed(mlm, turned(of), tmp_path / "turned") == once
        assert probed(mlm, of.subset([2]), tmp_path / "alone").items() <= once.items()


def test_probes_do_not_depend_on_threads(mlm: Mlm, tmp_path: Path) -> None:
    of = units(TASKS[0], 4)
    with threads(1):
        one = probed(mlm, of, tmp_path / "one")
    with threads(2):
        two = probed(mlm, of, tmp_path / "two")
    close(one, two, "score")


def test_answers_are_the_same_twice_in_any_batch_order_and_threads(
    mlm: Mlm, tmp_path: Path
) -> None:
    of = units("mcq", 9)
    with threads(1):
        once = answered(mlm, of, tmp_path / "once", 4)
        assert answered(mlm, of, tmp_path / "again", 4) == once
        others = {
            "alone": answered(mlm, of, tmp_path / "alone", 1),
            "together": answered(mlm, of, tmp_path / "together", 9),
            "turned": answered(mlm, turned(of), tmp_path / "turned", 4),
        }
    with threads(2):
        others["threads"] = answered(mlm, of, tmp_path / "threads", 4)
    for name, other in others.items():
        close(once, other, "logprobs")
        same = ("text", "letter", "logprob_letter", "correct", "logprob_correct")
        for place in once:
            assert all(once[place][k] == other[place][k] for k in same), (name, place)


def test_readouts_are_the_same_in_any_order(mlm: Mlm, tmp_path: Path) -> None:
    def read(of: UnitSet, name: str) -> Rows:
        source = MlmSource(mlm, position=False)
        return by_place(r for run in run_readouts(of, source, tmp_path / name) for r in run.rows)

    of = units("mcq", 9)
    once = read(of, "once")
    assert once and read(of, "again") == once and read(turned(of), "turned") == once
