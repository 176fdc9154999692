"""A place in a model at which features are read."""

from __future__ import annotations

from typing import NamedTuple


class Site(NamedTuple):
    """`layer` and `head` are None where a site has none; `site` too for results made elsewhere."""

    site: str | None
    layer: int | None = None
    head: int | None = None
