"""Answers each line on stdin by one timed run, as a line of JSON; the scripts beside import it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def serve(run: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]) -> None:
    """Run once for each line until stdin ends."""
    arrays = dict(np.load(sys.argv[1]))
    for _ in sys.stdin:
        start = time.process_time()
        answer = run(arrays)
        print(json.dumps({"seconds": time.process_time() - start, **answer}), flush=True)
