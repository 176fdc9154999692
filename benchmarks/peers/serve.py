"""Answers each line on stdin by one timed run; the scripts beside import it.

What a run returns goes into a file of arrays; its CPU-seconds and the process's memory are the line
of JSON on stdout. To the line `profile` it answers what a run spends its time in.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import shares


def serve(run: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]) -> None:
    """Run once for each line until stdin ends."""
    inputs, answers = sys.argv[1:]
    arrays = dict(np.load(inputs))
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a tool prints is no answer
    for line in sys.stdin:
        if line == "profile\n":
            print(json.dumps(shares(lambda: run(arrays))), file=said, flush=True)
            continue
        start = time.process_time()
        answer = run(arrays)
        seconds = time.process_time() - start
        np.savez(answers, **answer)
        print(json.dumps({"seconds": seconds, "memory_mib": _peak_mib()}), file=said, flush=True)


def _peak_mib() -> float:
    """The process's largest resident set; getrusage's counts that of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line for line in lines if line.startswith("VmHWM:")]
    return int(peak.split()[1]) / 1024
