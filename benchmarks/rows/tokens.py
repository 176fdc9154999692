"""What capture costs at 1, 2 and 4 times as many image tokens in one prompt."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.rows.inputs import nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.data.scenes.paint import generator, render, sample_scene
from kvfix.eval.source import NEUTRAL
from kvfix.mlm.capture import SITES, Capture
from kvfix.mlm.load import Encoded, Mlm, Prompt

PLAIN = "a plain pass"


def compared(asked: Asked) -> Iterator[Contest]:
    """A prompt of 4, 8 and 16 images, all of which see those before them."""
    mlm = nano()
    for count in (1, 2) if asked.tiny else (4, 8, 16):
        scenes = [sample_scene(generator("test", i, "bench")) for i in range(count)]
        images = tuple(render(scene).image for scene in scenes)
        encoded = mlm.encode([Prompt(images, NEUTRAL)])
        tokens = sum(len(span.positions_V) for span in encoded.images[0])
        yield _contest(f"capture of every layer, {tokens} image tokens", mlm, encoded, asked)


def _contest(name: str, mlm: Mlm, encoded: Encoded, asked: Asked) -> Contest:
    @torch.inference_mode()
    def plain() -> None:
        mlm.base.model(**encoded.inputs, use_cache=False)

    @torch.inference_mode()
    def captured() -> None:
        with Capture(mlm, encoded, sites=SITES) as cap:
            mlm.base.model(**encoded.inputs, use_cache=False)
            cap.collect()

    goal = Goal(1.05, at_most=True)
    return Contest(name, captured, {PLAIN: plain}, {PLAIN: goal}, 3 * asked.rounds)
