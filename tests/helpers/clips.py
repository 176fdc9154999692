"""A clip at hand, frame by frame through the probe of temporal correspondence."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from kvfix.eval.probes.correspondence import ClipScorer
from kvfix.eval.probes.propagation import Window
from kvfix.eval.probes.score import UnitScore
from kvfix.mlm.layout import Layout


def score_clip(
    frames: Iterable[tuple[torch.Tensor, Layout]],
    masks: Sequence[np.ndarray],
    *,
    window: Window | None = None,
    keep: int | None = None,
) -> UnitScore:
    """Temporal correspondence of one clip of three frames at least; see `ClipScorer`.

    Frames, (f_SHWC, layout) in order, are consumed lazily; the last does not count and is not asked
    for.
    """
    if len(masks) < 3:
        raise ValueError(
            f"a clip needs at least 3 frames (the first and last do not count), got {len(masks)}"
        )
    stream = iter(frames)
    first_SHWC, layout = _next_frame(stream, 0, len(masks))
    kept = None if keep is None else ("", keep)
    scorer = ClipScorer({"": first_SHWC}, layout, masks[0], window=window, keep=kept)
    for t in range(1, len(masks) - 1):
        scorer.step({"": _next_frame(stream, t, len(masks))[0]}, masks[t])
    return scorer.result()[""]


def _next_frame(stream: object, t: int, n_frames: int) -> tuple[torch.Tensor, Layout]:
    frame = next(stream, None)  # type: ignore[call-overload]
    if frame is None:
        raise ValueError(f"the clip has {n_frames} masks but only {t} frames")
    return frame
