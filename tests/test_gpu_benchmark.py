"""The benchmark for a machine with a card, dry: every row is measured on a nano on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from places import ROOT

sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks import gpu, gpu_rows

NAME = "llava-onevision-qwen2-7b-ov"


def test_every_row_is_measured_or_says_why_not(tmp_path: Path) -> None:
    gpu_rows.measure(NAME, tmp_path, tiny=True, until=time.monotonic() + 600)
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "failed" in row.get("note", "")]
    names = " ".join(row["row"] for row in rows)
    for part in ("building", "capture", "questions", "surfacing step", "artifacts step", "units"):
        assert part in names
    unrun = {row["row"] for row in rows if row.get("note", "").startswith("not run")}
    assert unrun == {"surfacing step, ZeRO-2", "surfacing step, nf4"}
    [letters] = [row["note"] for row in rows if "letters" in row.get("note", "")]
    assert letters == "2/2 letters equal"
    table = gpu._table(rows, {"gpu": None, "torch": "0"})
    assert table.row_count == len(rows)


def test_a_row_that_fails_or_comes_too_late_costs_no_other(tmp_path: Path) -> None:
    bench = gpu_rows.Bench(NAME, torch.device("cpu"), tmp_path / "rows", True, time.monotonic() + 9)

    def broken() -> None:
        raise RuntimeError("out of memory")

    gpu_rows._tried(bench, "a part", broken)
    gpu_rows._tried(bench._replace(until=time.monotonic() - 1), "late", broken)
    first, second = map(json.loads, bench.file.read_text().splitlines())
    assert first["note"] == "failed: RuntimeError: out of memory"
    assert second["row"] == "late" and second["note"].startswith("not run")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of 80 GB")
def test_on_a_card_the_whole_of_it_ends_within_its_budget(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    assert subprocess.run(words, cwd=ROOT, timeout=600).returncode == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["model"] for row in rows} == set(gpu.MODELS)
