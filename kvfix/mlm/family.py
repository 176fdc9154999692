"""What kvfix knows of one kind of multimodal language model: the row of the family table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from kvfix.adapters.naming import Naming
from kvfix.checkpoint.processor_fields import Field
from kvfix.mlm.images import shapes
from kvfix.mlm.images.shapes import PixelLimits
from kvfix.mlm.language_models import language_model_of
from kvfix.mlm.layout import Layout, LayoutRequest


@dataclass(frozen=True)
class Family:
    """One kind of multimodal language model."""

    model_type: str  # `model_type` in the checkpoint's config.json
    vision: str  # path of the vision tower
    projector: str  # path of the module that takes vision features and gives image tokens
    lm: str  # path of the language model (with `.layers` and `.rotary_emb`)
    # Vision rows that the projector merges into one image token.
    patches_a_token: Callable[[Any], int]
    layouts: Callable[[LayoutRequest], list[Layout]]  # layouts of one sample's images
    lora_projector: str  # names of the LoRA targets in the projector, for `re.fullmatch`
    # The same in the vision tower, from the config: only layers whose output is used, as the others
    # would get no gradient.
    lora_vision: Callable[[Any], str]
    # Text position ids count real tokens only. False: the model derives its own (M-RoPE), and
    # giving any would switch that off.
    positions_from_mask: bool
    # Arguments of the model's `get_image_features` for one sample's images, without pixels: (sizes,
    # config, layouts, grids) -> dict.
    image_shapes: Callable[[Sequence[tuple[int, int]], Any, Sequence[Layout], Any], dict[str, Any]]
    processor: str  # name of its processor's class
    fields: Callable[[Any], list[Field]]  # what the config says about the processor
    # Last sizes of `pixel_values` that the tower takes, from the config; empty: any.
    pixels: Callable[[Any], tuple[int, ...]]
    upstream: str  # a repository that holds such a model with its processor, for messages
    cut: str  # what becomes of an image, for people
    needs: str = ""  # what its user has to have or to set, for people; empty: nothing
    # Path of a module whose input has one row per image token, patches already merged; the site
    # `vision` is read there. Empty: it is the projector's input.
    merged: str = ""
    # Of the site `vision`, from the config; None: a patch's times `patches_a_token`.
    channels: Callable[[Any], int] | None = None
    # Patch grids by size, config, processor and pixel limits; None: the config's tiles.
    grids: Callable[[Sequence[tuple[int, int]], Any, Any, PixelLimits], Tensor] | None = None
    # Image tokens from the base model and what `image_shapes` made.
    pictures: Callable[[Any, dict[str, Any]], Tensor] = shapes.of_the_model
    # What attends to later tokens, too: "image": an image's tokens to all of their image; "prompt":
    # all of a prompt to all of it; empty: nothing.
    sees_ahead: Literal["", "image", "prompt"] = ""
    first_position: int = 0  # position id of the first token, where `positions_from_mask`
    # The token that the processor puts, once per image token, from the processor.
    placed: Callable[[Any], str] = lambda processor: processor.image_token
    # What the processor puts for one placeholder of a rendered prompt, from the processor and the
    # image's layout.
    expand: Callable[[Any, Layout], str] = lambda processor, layout: (
        processor.image_token * layout.n_tokens
    )
    template: str = ""  # chat template for checkpoints that have none; empty: they have one
    # What is done to a processor that was read, so that it puts what its template says.
    prepare: Callable[[Any], None] = lambda processor: None
    # Bound of the next-word logits behind the head, from the config; None: there is none.
    logit_cap: Callable[[Any], float | None] = lambda config: None
    videos: bool = False  # a video is so many images to it, each of several frames
    # What a reader of its figures has to know, sentences, from the config.
    notes: Callable[[Any], tuple[str, ...]] = lambda config: ()
    # What its modules were called before, newest first; adapters keep such names.
    old_names: tuple[Naming, ...] = ()

    def vision_channels(self, config: Any) -> int:
        """Channels of the site `vision`."""
        if self.channels is not None:
            return self.channels(config)
        return self.patches_a_token(config) * config.vision_config.hidden_size

    def lora_targets(self, config: Any, *parts: str) -> str:
        """One regex for PEFT's `target_modules` in any of "lm", "projector", "vision"; it matches
        full names.
        """
        kind = language_model_of(config.text_config.model_type, where=self.model_type)
        table = {
            "lm": rf"{re.escape(self.lm)}\.layers\.\d+\.({kind.lora})",
            "projector": self.lora_projector,
            "vision": self.lora_vision(config),
        }
        unknown = [part for part in parts if part not in table]
        if unknown or not parts:
            raise ValueError(f"expected parts out of {', '.join(table)}, found {unknown or 'none'}")
        return "|".join(f"(?:{table[part]})" for part in parts)
