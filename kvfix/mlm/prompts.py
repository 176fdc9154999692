"""Images and text -> model inputs, and where in the sequence each image's tokens landed.

Shapes: B samples, L sequence positions, V image tokens of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kvfix.mlm.families import Family
from kvfix.mlm.images import clips
from kvfix.mlm.layout import Layout, LayoutRequest
from kvfix.mlm.prompt import Prompt

# Stands for the text while the chat template is rendered; no template or word list contains it.
MARK = "\u2042kvfix\u2042"


class ImageSpan(NamedTuple):
    """Where one image is."""

    positions_V: Tensor  # its tokens' positions in the (padded) sequence
    layout: Layout  # which of them holds which cell
    first_row: int  # its first row among the projector's rows of the whole batch


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch, ready for the model."""

    inputs: dict[str, Tensor]  # all that the forward pass needs, on the model's device
    images: list[list[ImageSpan]]  # for each sample a span per image, or per step of a video
    # Position of the last token of each `text`, before the template's suffix. For an empty text the
    # last token before that suffix.
    text_end_B: Tensor
    # The rendered prompts, one placeholder an image: the exact order of system prompt, prefix,
    # images, text and suffix.
    order_texts: tuple[str, ...]


Around = Callable[[Encoded], AbstractContextManager[None]]
"""What is held open during a forward pass, made for the batch that is run."""


def encode(
    prompts: Sequence[Prompt],
    *,
    processor: Any,
    config: Any,
    family: Family,
    device: torch.device,
    dtype: torch.dtype,
    padding_side: str = "left",
) -> Encoded:
    """Render, tokenise and lay out a batch; see `Mlm.encode`."""
    check_prompts(prompts, processor=processor, padding_side=padding_side)
    videos = clips.are_videos(prompts, family, processor)
    conversations = [_conversation(prompt) for prompt in prompts]
    batch = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": padding_side}
        | (clips.processor_arguments(prompts) if videos else {}),
    )
    inputs = model_inputs(batch)
    if family.positions_from_mask:
        # As `generate` does; the models themselves would count left padding as positions.
        mask_BL = inputs["attention_mask"]
        inputs["position_ids"] = (mask_BL.cumsum(-1) - 1).clamp(min=0) + family.first_position
    known = {"processor": processor, "config": config, "family": family}
    if videos:
        layouts = clips.layouts_of_clips(prompts, inputs["video_grid_thw"], **known)
    else:
        layouts = layouts_of([p.images for p in prompts], inputs, **known)
    token = config.video_token_id if videos else config.image_token_id
    images = spans_of(inputs["input_ids"], layouts, image_token_id=token)
    rendered = processor.apply_chat_template(conversations, add_generation_prompt=True)
    return Encoded(
        inputs={
            # Pixels alone: rounded to bfloat16, seconds would move a video's positions.
            name: value.to(device, dtype if name.startswith("pixel_values") else None)
            for name, value in inputs.items()
        },
        images=images,
        text_end_B=_text_ends(prompts, rendered, inputs["attention_mask"], processor),
        order_texts=tuple(rendered),
    )


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a processor made for a pass: tensors, but for labels, which a pass needs none of."""
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name != "labels"
    }


def check_prompts(prompts: Sequence[Prompt], *, processor: Any, padding_side: str) -> None:
    """Refuse what would be encoded into something else than it says."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"expected padding_side 'left' or 'right', found {padding_side!r}")
    if not prompts:
        raise ValueError("expected at least one prompt, found none")
    for number, prompt in enumerate(prompts):
        if not prompt.images:
            raise ValueError(
                f"prompt {number} ({prompt.text[:40]!r}): expected at least one image, found none; "
                "kvfix reads features of image tokens, and a text-only prompt has none"
            )
        for image in prompt.images:
            if not isinstance(image, Image.Image) or image.mode != "RGB":
                found = getattr(image, "mode", type(image).__name__)
                raise ValueError(
                    f"prompt {number}: expected RGB PIL images, found {found}; use .convert('RGB')"
                )
        for token in processor.all_special_multimodal_tokens:
            if token in prompt.text or token in (prompt.prefix or ""):
                raise ValueError(
                    f"prompt {number}: expected text without the placeholder {token!r}, found it "
                    "in the text or prefix; the processor would put an image there"
                )


def _conversation(prompt: Prompt) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if prompt.prefix is not None:
        content.append({"type": "text", "text": prompt.prefix})
    if prompt.fps is not None:
        content.append({"type": "video", "video": list(prompt.images)})
    else:
        content += [{"type": "image", "image": image} for image in prompt.images]
    content.append({"type": "text", "text": prompt.text})
    return [{"role": "user", "content": content}]


def layouts_of(
    images: Sequence[Sequence[Image.Image]],
    inputs: dict[str, Tensor],
    *,
    processor: Any,
    config: Any,
    family: Family,
) -> list[list[Layout]]:
    """One layout an image of each sample, as the processor has cut it."""
    counts = [len(of_sample) for of_sample in images]
    grids = inputs.get("image_grid_thw")
    grids_a_sample = [None] * len(images) if grids is None else list(grids.split(counts))
    return [
        family.layouts(
            LayoutRequest(
                sizes=[(image.height, image.width) for image in of_sample],
                config=config,
                processor=processor,
                grids_thw=grids_thw,
            )
        )
        for of_sample, grids_thw in zip(images, grids_a_sample, strict=True)
    ]


def spans_of(
    ids_BL: Tensor, layouts: list[list[Layout]], *, image_token_id: int
) -> list[list[ImageSpan]]:
    """Share each sample's image tokens out to its images, in order."""
    spans: list[list[ImageSpan]] = []
    first_row = 0
    for number, (ids_L, of_sample) in enumerate(zip(ids_BL, layouts, strict=True)):
        positions = (ids_L == image_token_id).nonzero().flatten()
        counts = [layout.n_tokens for layout in of_sample]
        if sum(counts) != len(positions):
            sizes = [tuple(layout.image_hw) for layout in of_sample]
            raise ValueError(
                f"prompt {number}: the config's geometry gives {sum(counts)} image tokens for "
                f"images of (height, width) {sizes}, the processor placed {len(positions)}; "
                "expected equal numbers: config.json and the processor's files disagree on tile "
                "size, patch size or strategy"
            )
        row: list[ImageSpan] = []
        for positions_V, layout in zip(positions.split(counts), of_sample, strict=True):
            row.append(ImageSpan(positions_V, layout, first_row))
            first_row += layout.n_rows
        spans.append(row)
    return spans


def _text_ends(
    prompts: Sequence[Prompt], rendered: list[str], mask_BL: Tensor, processor: Any
) -> Tensor:
    """Positions of the texts' last tokens, counted from the end of each sequence.

    The text comes after all images, so the tokens after it are the same whether or not the image
    placeholders are expanded: the short, unexpanded prompt tells how many there are.
    """
    distinct = dict(zip(rendered, prompts, strict=True))
    marked = processor.apply_chat_template(
        [_conversation(prompt._replace(text=MARK)) for prompt in distinct.values()],
        add_generation_prompt=True,
    )
    after_of = {
        full: _tokens_after(full, text_suffix(full, mark), processor.tokenizer)
        for full, mark in zip(distinct, marked, strict=True)
    }
    # Last real position: argmax finds the first maximum, so look from the back.
    last_B = mask_BL.shape[1] - 1 - mask_BL.flip(-1).argmax(-1)
    return last_B - torch.tensor([after_of[full] for full in rendered])


def text_suffix(rendered: str, marked: str) -> str:
    """What the template puts after the text."""
    before, mark, suffix = marked.rpartition(MARK)
    if not mark or not (rendered.startswith(before) and rendered.endswith(suffix)):
        raise ValueError(
            "expected a chat template that prints the user's text after the images, found one that "
            "drops or rewrites it"
        )
    return suffix


def _tokens_after(rendered: str, suffix: str, tokenizer: Any) -> int:
    """Tokens that start in the suffix (an end token that the tokenizer adds is one of them)."""
    end = len(rendered) - len(suffix)
    spans = tokenizer(rendered, return_offsets_mapping=True)["offset_mapping"]
    inside = [i for i, (start, stop) in enumerate(spans) if start < end and stop > start]
    return len(spans) - 1 - inside[-1]
