"""Tables with planted scores: one mean a site, noise that units of a cluster share or not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvfix.eval.results import Table
from kvfix.runs.rows import ProbeRow

Place = tuple[str, int | None]


def rows(scores: Mapping[Place, np.ndarray], *, a_cluster: int = 2) -> list[ProbeRow]:
    """Rows of `samples/`: scores_N a place, `a_cluster` units a cluster."""
    n_units = len(next(iter(scores.values())))
    return [
        ProbeRow(
            f"u{i}",
            f"c{i // a_cluster}",
            "semantic_correspondence",
            "scenes",
            site,
            layer,
            None,
            "PCK@0.1",
            float(score_N[i]),
            chance=0.1,
            ceiling=0.9,
        )
        for i in range(n_units)
        for (site, layer), score_N in scores.items()
    ]


def planted(
    vision: float | None,
    projector: float | None,
    values: list[float],
    *,
    units: int = 40,
    noise: float = 0.05,
    seed: int = 0,
) -> Table:
    """Scores of a model whose stages have these means."""
    rng = np.random.default_rng(seed)
    outside: dict[Place, float | None] = {("vision", None): vision, ("projector", None): projector}
    means = {at: m for at, m in outside.items() if m is not None}
    means |= {("value", layer): m for layer, m in enumerate(values)}
    hard_N = rng.normal(0, 0.2, units)  # hard units are hard at every stage: pairing takes it out
    scores = {at: m + hard_N + rng.normal(0, noise, units) for at, m in means.items()}
    return Table(rows(scores))
