"""Co-segmentation's k-means, k = 1..14 from several seeds, beside two libraries' per layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import peers
from benchmarks.rows.inputs import IMAGE, SMALLEST, features, first_unit, nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.eval.probes.kmeans import grow_kmeans
from kvfix.eval.source import MlmSource

TOOLS = {"scikit-learn": "sklearn_kmeans.py", "faiss-cpu": "faiss_kmeans.py"}
MAX_K = 14
NEAR = 1.01  # a larger objective is another answer
WHY_SMALL = "few points: a hundred small steps for all layers, of which no function has a sixth"
WHY = "three quarters are the products of points and centres, which faiss needs, too"
LAYERS = 2  # of a real model's; one after the other in either library, 28 would take 14 times


def compared(asked: Asked) -> Iterator[Contest]:
    """A group of images, as far as the elbow may have to look."""
    images = first_unit("cosegmentation").images
    views = list(MlmSource(nano()).views(images))
    values = [view.features["value"].float() for view in views]
    yield from _contest(asked, "the nano's", values, WHY_SMALL, restarts=5)
    size = SMALLEST if asked.tiny else IMAGE._replace(sites=LAYERS)
    yield from _contest(asked, str(size), features(images, size), WHY, restarts=2)


def _contest(
    asked: Asked, size: str, values: list[torch.Tensor], why: str, *, restarts: int
) -> Iterator[Contest]:
    x_SNC = functional.normalize(torch.cat([v.flatten(1, 2) for v in values], dim=1), dim=2)
    last: dict[str, float] = {}

    def ours() -> None:
        draws = torch.Generator().manual_seed(0)
        got = grow_kmeans(x_SNC, restarts=restarts, generator=draws, max_k=MAX_K, elbow=1.0)
        last["objective"] = float(got.objective_SR.mean())

    given = {"x": x_SNC.numpy(), "max_k": np.array(MAX_K), "restarts": np.array(restarts)}
    with peers(asked, TOOLS, **given) as found:

        def same(way: str) -> str:
            mine, theirs = last["objective"], float(found.by_name[way].answer["objective"])
            words = f"objective {mine:.4f} and {theirs:.4f}"
            return words if mine <= NEAR * theirs else f"{words}: not equal"

        yield Contest(
            f"k-means, k = 1..{MAX_K}, {restarts} seeds, {len(values)} images, {size}",
            ours,
            found.by_name,
            dict.fromkeys(TOOLS, Goal(5)),
            min(asked.rounds, 2),
            same,
            found.missing,
            dict.fromkeys(TOOLS, why),
        )
