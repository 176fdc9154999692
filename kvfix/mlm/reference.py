"""A bare vision encoder (SigLIP, SigLIP2, CLIP, DINOv2) as the reference an MLM is compared with.

Shapes: B images, P patches, C channels, H, W rows and columns of an image's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kvfix.checkpoint import folder as checkpoint
from kvfix.checkpoint.towers import TOWERS
from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.images.tiles import processed_view, tile_layout
from kvfix.mlm.layout import Layout
from kvfix.quiet import no_bars


@dataclass(frozen=True)
class Encoder:
    """One kind of vision encoder."""

    classname: str  # transformers class that holds the vision part alone
    leading: Any  # tokens before the first patch (CLS, registers), from its config


_SIGLIP = Encoder("SiglipVisionModel", TOWERS["siglip_vision_model"].leading)
_SIGLIP2 = Encoder("Siglip2VisionModel", TOWERS["siglip2_vision_model"].leading)
_CLIP = Encoder("CLIPVisionModel", TOWERS["clip_vision_model"].leading)
ENCODERS: dict[str, Encoder] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": Encoder("Dinov2Model", TOWERS["dinov2"].leading),
    "dinov2_with_registers": Encoder(
        "Dinov2WithRegistersModel", TOWERS["dinov2_with_registers"].leading
    ),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
}


class ReferenceFeatures(NamedTuple):
    """Features of one image: f_1HWC and where its cells are."""

    f_1HWC: Tensor
    layout: Layout


@dataclass(frozen=True, eq=False)
class ReferenceEncoder:
    """A loaded vision encoder."""

    id: str
    model: Any
    image_processor: Any
    encoder: Encoder
    weights: checkpoint.Weights

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return self.weights.sha256()

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> list[ReferenceFeatures]:
        """Patch features of RGB images as the last layer puts them out, in the model's dtype."""
        if not images:
            raise ValueError("expected at least one image, found none")
        wrong = [image.mode for image in images if image.mode != "RGB"]
        if wrong:
            raise ValueError(f"expected RGB images, found {wrong[0]}; use .convert('RGB')")
        batch = self.image_processor(images=list(images), return_tensors="pt")
        inputs = {
            name: value.to(
                self.model.device, self.model.dtype if value.is_floating_point() else None
            )
            for name, value in batch.items()
        }
        f_BPC = self.model(**inputs).last_hidden_state
        shapes = batch.get("spatial_shapes")
        return [
            self._on_grid(f_PC, image, None if shapes is None else tuple(shapes[i].tolist()))
            for i, (f_PC, image) in enumerate(zip(f_BPC, images, strict=True))
        ]

    def _on_grid(
        self, f_PC: Tensor, image: Image.Image, grid_hw: tuple[int, int] | None
    ) -> ReferenceFeatures:
        size = (image.height, image.width)
        if grid_hw is not None:
            layout = tile_layout(size, PixelView.of(size).resized(*grid_hw), patch=1, leading=0)
        else:
            view = processed_view(size, self.image_processor)
            config = self.model.config
            patch, leading = config.patch_size, self.encoder.leading(config)
            layout = tile_layout(size, view, patch=patch, leading=leading)
            if layout.n_tokens != len(f_PC):
                raise ValueError(
                    f"{self.id}: expected {layout.n_tokens} tokens from its processor's settings, "
                    f"found {len(f_PC)}: preprocessor_config.json and config.json disagree"
                )
        index = layout.index_HW.to(f_PC.device)
        return ReferenceFeatures(f_PC[index][None], layout)


def load_reference_encoder(id_or_dir: str, *, device: str | None = None) -> ReferenceEncoder:
    """Load a vision encoder in its own dtype; of a two-tower model (CLIP, SigLIP) the vision half.

    `device` None is the GPU if there is one.
    """
    import transformers

    weights = checkpoint.find(str(id_or_dir), weights=True)
    kind = weights.config.get("model_type")
    if kind not in ENCODERS:
        raise ValueError(
            f"{weights.folder / 'config.json'}: expected model_type to be one of "
            f"{', '.join(sorted(ENCODERS))}, found {kind!r}"
        )
    encoder = ENCODERS[kind]
    options = {"local_files_only": True, "trust_remote_code": False}
    with no_bars():
        model, info = getattr(transformers, encoder.classname).from_pretrained(
            weights.folder, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{weights.folder}: expected weights for the vision part, found none for {missing[0]}"
        )
    return ReferenceEncoder(
        id=str(id_or_dir),
        model=model.eval().to(checkpoint.pick_device(device)),
        image_processor=transformers.AutoImageProcessor.from_pretrained(weights.folder, **options),
        encoder=encoder,
        weights=weights,
    )
