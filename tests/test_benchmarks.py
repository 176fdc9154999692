"""`python -m benchmarks`: every row runs at its smallest, without a tool from PyPI."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks import busy, peers, train
from benchmarks.rows import ROWS, growth, row
from benchmarks.turns import Asked, Contest, Goal, Line, measured, profiled

TINY = Asked(rounds=1, tiny=True)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rows measure in processes of their own is measured here: none has to import torch."""
    from kvfix.repair.train.guard import Guard

    for name in ("begin", "add", "norm", "end", "flags", "send", "read"):  # a child clocks them
        monkeypatch.setattr(Guard, name, getattr(Guard, name))
    monkeypatch.setattr(train, "in_a_process", train.child)
    monkeypatch.setattr(train, "PERIOD", 1)
    monkeypatch.setattr(growth, "_in_a_process", growth.score)
    monkeypatch.setattr(busy, "ROUNDS", 1)
    passed = busy.seconds_of_a_pass
    monkeypatch.setattr(busy, "alone_and_beside", lambda _: busy.Took(passed(), passed()))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_measured_at_its_smallest(name: str, in_this_process: None) -> None:
    parts = 0
    for part in row(name, TINY):
        parts += 1
        for line in measured(part) if isinstance(part, Contest) else [part]:
            assert isinstance(line, Line) and all(isinstance(cell, str) for cell in line)
            assert " ms" in line.ours or " MiB" in line.ours
    assert parts


def _way(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def test_a_ratio_is_taken_the_way_its_goal_bounds_it_and_a_miss_says_why() -> None:
    goals = {"slow": Goal(3), "fast": Goal(1.05, at_most=True)}
    beside = {"slow": _way(8.0), "fast": _way(1.0)}
    why = {"slow": "too quick to be noted", "fast": "twice the work"}
    contest = Contest("a row", _way(2.0), beside, goals, 2, lambda way: f"as {way}", why=why)
    slow, fast = measured(contest)
    assert (slow.ratio, slow.goal, slow.why) == ("4.00x", ">= 3x", "")
    assert (fast.ratio, fast.goal, fast.why) == ("2.00x", "<= 1.05x: missed", "twice the work")
    assert slow.agreement == "as slow" and slow.ours == "2000.0 ms"


def test_a_tool_that_cannot_be_had_is_a_line_with_the_reason() -> None:
    contest = Contest("a row", _way(2.0), {}, {}, 1, missing=("faiss-cpu: no such version",))
    [line] = measured(contest)
    assert line.beside == "faiss-cpu: no such version" and line.ours == "2000.0 ms"


def test_a_profile_names_the_functions_that_take_the_time_of_each_side() -> None:
    def work() -> None:
        sum(i * i for i in range(10**5))

    def beside() -> None:
        sorted(range(10**5), key=abs)

    ours, theirs = profiled(Contest("a row", work, {"a tool": beside}, {}, 1)).split("a row, ")[1:]
    assert ours.startswith("kvfix: ") and "genexpr" in ours
    assert theirs.startswith("a tool: ") and "sorted" in theirs and "genexpr" not in theirs


def test_a_tool_answers_from_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "python_of", lambda tool: Path(sys.executable))
    monkeypatch.setattr(peers, "HERE", tmp_path)
    (tmp_path / "serve.py").write_text((ROOT / "benchmarks/peers/serve.py").read_text())
    lines = "from serve import serve", "def run(a):", "    print('noise')", "    return {'twice': "
    (tmp_path / "twice.py").write_text("\n".join(lines) + "2 * a['x']}\nserve(run)\n")
    (tmp_path / "broken.py").write_text("raise ValueError('no such thing')\n")
    with peers.peers(Asked(1), {"double": "twice.py"}, x=np.arange(3)) as found:
        assert found.by_name["double"]() >= 0
        assert found.by_name["double"].answer["twice"].tolist() == [0, 2, 4]
        assert found.by_name["double"].memory_mib > 1
        assert "of CPU under the profiler" in found.by_name["double"].profile()
    with (
        peers.peers(Asked(1), {"double": "broken.py"}, x=np.arange(3)) as found,
        pytest.raises(RuntimeError, match="double: ValueError: no such thing"),
    ):
        found.by_name["double"]()
