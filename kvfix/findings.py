"""Findings: sentences with a number and its interval."""

from __future__ import annotations

from typing import Any

Finding = dict[str, Any]


# A bootstrap interval never leaves the range of its clusters, so that a few of one sign always
# exclude 0. Six of one sign are the fewest that a two-sided sign test finds at 5 % (2 / 2^6).
FEWEST_CLUSTERS = 6
