"""Texts out of data that a model is to read, and names out of data that become paths and ids."""

from __future__ import annotations

import hashlib

from kvfix.data.units import BadUnit
from kvfix.wording import shown

# What the processors of the supported families replace by an image or a video: in a text of data
# each would be taken for one more image. One list for all models, so that all are asked the same.
PLACEHOLDERS = ("<image>", "<video>", "<|image_pad|>", "<|video_pad|>")
LONGEST = 100_000  # characters: more than the context of the supported models
LONGEST_NAME = 255  # bytes of a file's name, in every common file system


def check_text(value: object, where: str, what: str) -> str:
    """A text that a model can be asked, or a BadUnit that names the place and the field."""
    if not isinstance(value, str) or not value.strip():
        raise BadUnit(f"{where}: expected {what}, a text, found {shown(value)}")
    check_askable(value, where, what)
    return value


def check_askable(value: str, where: str, what: str) -> None:
    """What `check_text` asks of a text, which may be empty here: no placeholder, not too long."""
    if len(value) > LONGEST:
        raise BadUnit(
            f"{where}: expected {what} of at most {LONGEST:,} characters, found {len(value):,}"
        )
    for token in PLACEHOLDERS:
        if token in value:
            raise BadUnit(
                f"{where}: expected {what} without {token}, found it in the text; a processor "
                "would put an image there"
            )


def bounded(name: str) -> str:
    """A name as it may become an id: itself, or both its ends and a hash if no file may be so
    called.
    """
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{name[:40]}...{digest}...{name[-40:]}"
