"""Pictures of a run folder, as they stand in its page; none from outside the folder gets in."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

MOST_BYTES = 3_500_000  # of a page's pictures, so that the page stays below 5 MB
TYPES = {"PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Picture:
    """A picture for a page; `uri` is None where the page is full, and the file is named instead."""

    uri: str | None
    link: str  # relative to the run folder, quoted
    shape: float  # width / height


@dataclass
class Album:
    """The pictures of one page."""

    folder: Path
    _left: int = field(default=MOST_BYTES, init=False)

    def get(self, file: Any) -> Picture | None:
        """The picture at a path below the folder; None where there is no PNG or WebP picture."""
        from PIL import Image, UnidentifiedImageError

        root = self.folder.resolve()
        path = (root / str(file)).resolve()
        if not (path.is_relative_to(root) and path.is_file()):
            return None
        data = path.read_bytes()
        try:
            with Image.open(io.BytesIO(data), formats=tuple(TYPES)) as image:
                kind, (width, height) = TYPES[str(image.format)], image.size
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            return None
        uri = None
        if len(data) <= self._left:
            self._left -= len(data)
            uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return Picture(uri, quote(path.relative_to(root).as_posix()), width / height)
