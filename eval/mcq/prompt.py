"""How a multiple-choice question is asked: BLINK's protocol, and all that can move a score.

Source: zeyofu/BLINK_Benchmark ``eval/test_benchmark.py`` and ``eval/query_model.py``: the dataset's
own prompt verbatim, a disclaimer before it for three tasks (the reader attaches it), text before
images, temperature 0; for models that take one image, all images side by side. Images go in as they
are: the official script's detour over JPEG files is not repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from PIL import Image

from kvfix.data.pictures.join import concatenate
from kvfix.data.units import Question
from kvfix.eval.mcq.letters.parse import PROFILES
from kvfix.mlm.prompt import Prompt

PROTOCOL: Final = 2  # raised whenever a change in this room moves a score

Order = Literal["images-first", "text-first"]
Form = Literal["(A)", "A"]


@dataclass(frozen=True)
class McqProtocol:
    """Everything about asking and reading that moves a score; stamped into runs."""

    profile: str = "kvfix"  # rules that read a letter from a written answer
    order: Order = "images-first"  # as chat templates were trained; text-first is official
    concat: bool = False  # join a question's images into one
    form: Form = "(A)"  # what is scored as an answer; BLINK's prompts letter options so
    max_new_tokens: int = 32  # of a written answer
    batch: int = 8  # questions at once; in low precision it moves last bits
    max_pixels: int | None = (
        None  # of an image, larger ones are shrunk; None: the processor's limit
    )
    version: int = PROTOCOL

    def __post_init__(self) -> None:
        for name, value, among in (
            ("profile", self.profile, tuple(PROFILES)),
            ("order", self.order, get_args(Order)),
            ("form", self.form, get_args(Form)),
            ("version", self.version, (PROTOCOL,)),
        ):
            if value not in among:
                raise ValueError(
                    f"{name}: expected one of {', '.join(map(str, among))}, found {value!r}"
                )
        for name, number in (
            ("max_new_tokens", self.max_new_tokens),
            ("batch", self.batch),
            ("max_pixels", self.max_pixels),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name}: expected at least 1, found {number}")


def ask(question: Question, protocol: McqProtocol) -> Prompt:
    """A question as the model is asked it."""
    images = question.images
    if protocol.concat and len(images) > 1:
        images = (concatenate(images),)
    if protocol.max_pixels is not None:
        images = tuple(shrink(image, protocol.max_pixels) for image in images)
    text = question.preamble + question.prompt
    if protocol.order == "text-first":
        return Prompt(images, "", prefix=text)
    return Prompt(images, text)


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image itself, or scaled to at most `max_pixels` with its aspect ratio kept."""
    if image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    width, height = (max(1, math.floor(side * scale)) for side in image.size)
    # A side that would vanish keeps one pixel; the other must make up for it.
    size = min(width, max_pixels // height or 1), min(height, max_pixels // width or 1)
    return image.resize(size, Image.Resampling.BICUBIC)
