"""kvfix on one GPU with models of full size and random weights: one JSON, one table, 8 minutes.

    python benchmarks/gpu.py --out DIR            # on a machine with one card of 80 GB
    python benchmarks/gpu.py --out DIR --tiny     # the same rows on the nanos, here, in a minute

Needs no network and no checkpoint: weights are drawn on the card, tokenizers are the nanos'. Beside
torch, transformers and peft the machine needs kvfix's other requirements (send wheels of pydantic,
datasets, dill, multiprocess, hjson, deepspeed, bitsandbytes with libbitsandbytes_cuda130.so alone,
and pycocotools: under 64 MiB together); what lacks a package is a row that says so.

For LLaVA-OneVision-7B, Qwen2.5-VL-7B and Llama-3-LLaVA-NeXT-8B in bfloat16, each in a process of
its own: building; capture of every layer beside a plain pass at about 1,000 and 7,000 tokens (SDPA,
and FlashAttention where it is installed) with MFU; probes; 64 multiple-choice questions beside
generate-and-score; a surfacing and an artifacts step beside plain LoRA; the same step by DeepSpeed
ZeRO-2 and in nf4; peak memory beside `kvfix plan`. Goals: capture at most 1.05x, steps at most
1.15x, multiple choice at least 8x, memory within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = ("llava-onevision-qwen2-7b-ov", "Qwen2.5-VL-7B-Instruct", "llama3-llava-next-8b")
BUDGET = 470.0  # seconds for all models
COLUMNS = ("model", "row", "kvfix", "beside", "", "ratio", "goal", "peak GB", "plan GB", "note")


def main() -> None:
    """Every model in turn; what is over the budget is named and not run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="nanos in place of 7B, on this CPU")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        from benchmarks.gpu_rows import measure

        measure(asked.child, asked.out, tiny=asked.tiny, until=time.monotonic() + asked.budget)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    models = asked.model or list(MODELS)
    until, rows = time.monotonic() + asked.budget, []
    for n, name in enumerate(models):
        rows += _child(name, asked, (until - time.monotonic()) / (len(models) - n))
    record = {"machine": _machine(), "tiny": asked.tiny, "rows": rows}
    (asked.out / "gpu.json").write_text(json.dumps(record, indent=1))
    with (asked.out / "gpu.txt").open("w") as file:
        for console in (Console(file=file, width=170), Console(width=170)):
            console.print(_table(rows, record["machine"]))
    sys.exit(any("failed" in row.get("note", "") for row in rows))


def _child(name: str, asked: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """The rows of one model; those of a process that died are kept, and one more says how."""
    root = Path(__file__).parent.parent
    lines = asked.out / f"{name}.jsonl"
    lines.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.gpu", "--child", name, "--out", str(asked.out)]
    words += ["--budget", f"{seconds:.0f}", *(["--tiny"] if asked.tiny else [])]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    why = ""
    try:
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(words, cwd=root, timeout=max(seconds, 5) + 20, env=environment)
        why = f"failed: exit code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"failed: not ended within {seconds:.0f} s"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return [*rows, {"model": name, "row": "process", "note": why}] if why else rows


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": card, "torch": torch.__version__, "transformers": transformers.__version__}


def _table(rows: list[dict[str, Any]], machine: dict[str, Any]) -> Table:
    table = Table(*COLUMNS, title=f"{machine['gpu'] or 'no GPU'}, torch {machine['torch']}")
    for row in rows:
        ours, theirs, ratio = (row.get(key) for key in ("ours", "theirs", "ratio"))
        table.add_row(
            row["model"][:18],
            row["row"],
            "" if ours is None else f"{ours:.3f} s",
            row.get("beside", ""),
            "" if theirs is None else f"{theirs:.3f} s",
            "" if ratio is None else f"{ratio:.3f}x",
            row.get("goal", ""),
            *("" if row.get(k) is None else f"{row[k]:.2f}" for k in ("peak_gb", "plan_gb")),
            row.get("note", ""),
        )
    return table


if __name__ == "__main__":
    main()
