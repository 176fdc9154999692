"""What capture costs at 1, 2 and 4 times as many image tokens in one prompt."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.rows.capture import PLAIN, passes
from benchmarks.rows.inputs import nano
from benchmarks.turns import Asked, Contest, Goal
from kvfix.data.scenes.paint import generator, render, sample_scene
from kvfix.eval.source import NEUTRAL
from kvfix.mlm.load import Prompt

WHY = (
    "the nano is so small that calls count: copies of 26 features and hooks of 66 modules, as many "
    "for one token as for a thousand"
)


def compared(asked: Asked) -> Iterator[Contest]:
    """A prompt of 4, 8 and 16 images, all of which see those before them."""
    mlm = nano()
    for count in (1, 2) if asked.tiny else (4, 8, 16):
        scenes = [sample_scene(generator("test", i, "bench")) for i in range(count)]
        images = tuple(render(scene).image for scene in scenes)
        encoded = mlm.encode([Prompt(images, NEUTRAL)])
        tokens = sum(len(span.positions_V) for span in encoded.images[0])
        plain, captured = passes(mlm, encoded)
        yield Contest(
            f"capture of every layer, {tokens} image tokens",
            captured,
            {PLAIN: plain},
            {PLAIN: Goal(1.05, at_most=True)},
            3 * asked.rounds,
            why={PLAIN: WHY},
        )
