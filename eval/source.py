"""Where a probe's features come from: one forward pass of an MLM, or of a bare vision encoder.

Shapes: S sites of one kind, H x W grid cells, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image

from kvfix.eval.grid import position_features
from kvfix.eval.site import Site
from kvfix.mlm.capture import LM_SITES, SITES, SampleFeatures, extract, split_heads
from kvfix.mlm.images.clips import check_takes_videos, step_of, video_settings
from kvfix.mlm.layout import Layout
from kvfix.mlm.load import Mlm, Prompt, ReferenceEncoder
from kvfix.mlm.prompts import Around

NEUTRAL = (
    "Describe the image."  # the text after the image; causality keeps it out of image features
)
Clips = Literal["frames", "video"]
TOKEN_BUDGET = 8192  # image tokens a forward pass


def clips_fingerprint(mlm: Mlm, clips: Clips) -> dict[str, Any]:
    """What of the reading of clips moves a score; nothing where they are read frame by frame."""
    if clips == "frames":
        return {}
    check_takes_videos(mlm.family, mlm.processor)
    return {"clips": {"read_as": clips, **video_settings(mlm.processor)}}


def clips_notes(mlm: Mlm, clips: Clips) -> list[str]:
    """What a reader of a clip's scores has to know, a sentence each."""
    if clips == "frames":
        return []
    n = mlm.config.vision_config.temporal_patch_size
    return [
        f"Clips went through the model as one video each. It merges {n} frames into one step: "
        f"frames 1 to {n}, {n + 1} to {2 * n} and so on share their features."
    ]


class View(NamedTuple):
    """One image as the model holds it: kind -> f_SHWC, all on one grid."""

    features: dict[str, torch.Tensor]
    layout: Layout


class Source(Protocol):
    """What a probe asks for features."""

    kinds: tuple[str, ...]

    def sites(self, kind: str) -> list[Site]:
        """The S sites of a kind, in the order of its features."""

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        """Features of images, each alone in its prompt, a batch of them at a time."""

    def clip(self, frames: Sequence[Image.Image], *, fps: float) -> Iterator[View]:
        """Features of the frames of a clip, in order."""

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        """Features of an image with a text after it, and t_SC at the text's last token."""


class MlmSource:
    """Features of every asked site of an MLM, and of the control site `position` if asked.

    With `heads` also every KV head apart, as kinds `key/head` and `value/head`. `prefix` is text
    before every image; `around` is held open during every pass, such as an intervention.
    With `clips` "frames" every frame of a clip is an image alone in its prompt; with "video" all of
    them go through the model at once, as one video, and frames that share a step of it (two of them
    in Qwen's models) have the same features. A family whose videos kvfix has no map of is refused.
    """

    def __init__(
        self,
        mlm: Mlm,
        *,
        kinds: Sequence[str] = SITES,
        heads: bool = False,
        position: bool = True,
        prefix: str | None = None,
        around: Around | None = None,
        clips: Clips = "frames",
    ):
        if clips == "video":
            check_takes_videos(mlm.family, mlm.processor)
        self.clips = clips
        self.mlm, self.kinds, self.heads, self.position = mlm, tuple(kinds), heads, position
        self.prefix, self.around = prefix, around

    def sites(self, kind: str) -> list[Site]:
        """The S sites of a kind, in the order of its features."""
        site, _, apart = kind.partition("/")
        layers = range(self.mlm.n_layers)
        if apart:
            return [Site(site, layer, h) for layer in layers for h in range(self.mlm.n_kv_heads)]
        return [Site(site, layer) for layer in layers] if site in LM_SITES else [Site(site)]

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        """Features of images, each alone in its prompt, a batch of them at a time."""
        for prompts in self.prompts(images):
            for sample in extract(self.mlm, prompts, sites=self.kinds, around=self.around):
                yield self._view(sample)

    def clip(self, frames: Sequence[Image.Image], *, fps: float) -> Iterator[View]:
        """Features of the frames of a clip, in order; of a video all are held at once."""
        if self.clips == "frames":
            yield from self.views(frames)
            return
        prompt = Prompt(tuple(frames), NEUTRAL, self.prefix, fps)
        [sample] = extract(self.mlm, [prompt], sites=self.kinds, around=self.around)
        steps = [
            self._view(SampleFeatures([features], [layout], None))
            for features, layout in zip(sample.images, sample.layouts, strict=True)
        ]
        for frame in range(len(prompt.images)):
            yield steps[step_of(frame, self.mlm.config)]

    def prompts(self, images: Sequence[Image.Image]) -> Iterator[list[Prompt]]:
        """What each forward pass of `views` is asked."""
        rest = iter(images)
        first = next(rest)
        batch, each = self._batch(first), chain([first], rest)
        while some := list(islice(each, batch)):
            yield [Prompt((image,), NEUTRAL, self.prefix) for image in some]

    def _batch(self, image: Image.Image) -> int:
        """Images a forward pass, by the image alone: a resumed run must batch as the first did."""
        tokens = self.mlm.tokens_of_size
        if image.size not in tokens:
            [[span]] = self.mlm.encode([Prompt((image,), NEUTRAL)]).images
            tokens[image.size] = span.layout.n_tokens
        return max(1, TOKEN_BUDGET // tokens[image.size])

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        """Features of an image with a text after it, and t_SC at the text's last token."""
        kinds = tuple(k for k in self.kinds if k in LM_SITES)
        prompt = Prompt((image,), text, self.prefix)
        [sample] = extract(self.mlm, [prompt], sites=kinds, text=True, around=self.around)
        view, said = self._view(sample), dict(sample.text or {})
        for kind in list(said):
            if f"{kind}/head" in view.features:
                said[f"{kind}/head"] = split_heads(said[kind], self.mlm.n_kv_heads)
        if self.position:
            # A text that says nothing but "in the middle".
            f_1HWC = view.features["position"]
            said["position"] = f_1HWC[:, f_1HWC.shape[1] // 2, f_1HWC.shape[2] // 2]
        return view, said

    def _view(self, sample: SampleFeatures) -> View:
        features, layout = dict(sample.images[0]), sample.layouts[0]
        for kind, f_SHWC in features.items():
            # NaN and infinity would be scored as a bad model, silently; both reach an end.
            if not torch.stack(f_SHWC.aminmax()).isfinite().all():
                raise ValueError(
                    f"{self.mlm.id}: expected finite features, found NaN or infinity in {kind} "
                    f"({self.mlm.dtype}); try another dtype"
                )
        if self.heads:
            for kind in ("key", "value"):
                if kind in features:
                    features[f"{kind}/head"] = split_heads(features[kind], self.mlm.n_kv_heads)
        if self.position:
            features["position"] = position_features(layout).to(self.mlm.device)
        return View(features, layout)


class EncoderSource:
    """Features of a bare vision encoder, kind `reference`."""

    def __init__(self, encoder: ReferenceEncoder):
        self.encoder = encoder

    def sites(self, kind: str) -> list[Site]:
        """One site: the encoder's last patch features."""
        return [Site(kind)]

    def views(self, images: Sequence[Image.Image]) -> Iterator[View]:
        """Features of images, one at a time."""
        for image in images:
            [(f_1HWC, layout)] = self.encoder.features([image])
            yield View({"reference": f_1HWC}, layout)

    def clip(self, frames: Sequence[Image.Image], *, fps: float) -> Iterator[View]:
        """The same: an encoder knows no time."""
        return self.views(frames)

    def spoken(self, image: Image.Image, text: str) -> tuple[View, dict[str, torch.Tensor]]:
        """An encoder alone holds no text: no kind has a text vector."""
        [view] = self.views([image])
        return view, {}
