"""Every site of every layer beside a plain pass, hidden states projected again, and nnsight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.peers import peers
from benchmarks.rows.inputs import nano
from benchmarks.turns import Asked, Contest, Goal, Way
from kvfix.data.scenes.paint import generator, render, sample_scene
from kvfix.eval.source import NEUTRAL
from kvfix.mlm.capture import SITES, Capture, SampleFeatures
from kvfix.mlm.load import Encoded, Mlm, Prompt
from kvfix.shipped import nano_dir

PLAIN, AGAIN = "a plain pass", "output_hidden_states, keys and values again"
READ = ("key", "value")
WHY = (
    "three fifths of either are the same products and attention of the model, each in a process of "
    "its own; no function that reads features has a fiftieth"
)
WHY_PLAIN = (
    "no function that reads features has a fiftieth of the time; rounds of a plain pass differ by "
    "more than the goal leaves"
)
NEAR = 1e-4  # features further apart are other features


def compared(asked: Asked) -> Iterator[Contest]:
    """The work is one pass over a batch of images; nnsight reads keys and values alone."""
    mlm = nano()
    images = 2 if asked.tiny else 8
    pictures = [render(sample_scene(generator("test", i, "bench"))).image for i in range(images)]
    encoded = mlm.encode([Prompt((image,), NEUTRAL) for image in pictures])
    layers = mlm.base.model.language_model.layers
    plain, captured = passes(mlm, encoded)
    last: dict[str, list[SampleFeatures]] = {}
    _, read = passes(mlm, encoded, READ, lambda samples: last.update(kvfix=samples))

    @torch.inference_mode()
    def projected_again() -> None:
        out = mlm.base.model(**encoded.inputs, use_cache=False, output_hidden_states=True)
        for layer, hidden in zip(layers, out.hidden_states, strict=False):
            normed = layer.input_layernorm(hidden)
            layer.self_attn.k_proj(normed), layer.self_attn.v_proj(normed)

    yield Contest(
        f"capture of every layer, {images} images",
        captured,
        {PLAIN: plain, AGAIN: projected_again},
        {PLAIN: Goal(1.05, at_most=True), AGAIN: Goal(1)},
        3 * asked.rounds,
        why={PLAIN: WHY_PLAIN},
    )

    cells = _cells(encoded)
    given = {name: tensor.numpy() for name, tensor in encoded.inputs.items()}
    with peers(
        asked,
        {"nnsight": "nnsight_capture.py"},
        model=np.array(str(nano_dir())),
        cells=cells,
        **given,
    ) as found:

        def apart(way: str) -> str:
            answer = found.by_name[way].answer
            ours = {site: _rows(last["kvfix"], site) for site in READ}
            far = max(float(np.abs(ours[site] - answer[site]).max()) for site in READ)
            return f"features within {far:.0e}" + ("" if far < NEAR else ": not equal")

        yield Contest(
            f"keys and values of every layer, {images} images",
            read,
            found.by_name,
            {"nnsight": Goal(1)},
            asked.rounds,
            apart,
            found.missing,
            {"nnsight": WHY},
        )


def passes(
    mlm: Mlm,
    encoded: Encoded,
    sites: tuple[str, ...] = SITES,
    keep: Callable[[list[SampleFeatures]], object] = len,
) -> tuple[Way, Way]:
    """A plain pass over a batch, and one whose features of some sites are handed to `keep`."""

    @torch.inference_mode()
    def plain() -> None:
        mlm.base.model(**encoded.inputs, use_cache=False)

    @torch.inference_mode()
    def captured() -> None:
        with Capture(mlm, encoded, sites=sites) as cap:
            mlm.base.model(**encoded.inputs, use_cache=False)
            keep(cap.collect())

    return plain, captured


def _cells(encoded: Encoded) -> np.ndarray:
    """Flat positions b * L + l of every image's cells, image after image."""
    length = encoded.inputs["input_ids"].shape[1]
    return np.concatenate(
        [
            (b * length + span.positions_V[span.layout.index_HW.flatten()]).numpy()
            for b, spans in enumerate(encoded.images)
            for span in spans
        ]
    )


def _rows(samples: list[SampleFeatures], site: str) -> np.ndarray:
    return torch.cat([s.images[0][site].flatten(1, 2) for s in samples], dim=1).numpy()
