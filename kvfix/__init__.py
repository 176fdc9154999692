"""kvfix: find where a multimodal language model loses what it sees, repair it, prove the repair.

    import kvfix

    mlm = kvfix.load_mlm("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    [sample] = kvfix.extract(mlm, [kvfix.Prompt((image,), "Describe the image.")], sites=("value",))
    sample.images[0]["value"]  # (layers, rows, columns, channels) on the grid sample.layouts[0]

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvfix.checkout import know_what_lies_beside

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kvfix.mlm.capture import Capture, SampleFeatures, extract, split_heads
    from kvfix.mlm.layout import Layout
    from kvfix.mlm.load import Mlm, Prompt, load_mlm, load_reference_encoder

_HOME = {
    "Capture": "kvfix.mlm.capture",
    "SampleFeatures": "kvfix.mlm.capture",
    "extract": "kvfix.mlm.capture",
    "split_heads": "kvfix.mlm.capture",
    "Layout": "kvfix.mlm.layout",
    "Mlm": "kvfix.mlm.load",
    "Prompt": "kvfix.mlm.load",
    "load_mlm": "kvfix.mlm.load",
    "load_reference_encoder": "kvfix.mlm.load",
}
__all__ = [
    "Capture",
    "Layout",
    "Mlm",
    "Prompt",
    "SampleFeatures",
    "__version__",
    "extract",
    "load_mlm",
    "load_reference_encoder",
    "split_heads",
]

know_what_lies_beside()
# Threads that wait for work sleep: spinning, they cost twentyfold beside another busy process. It
# is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'kvfix' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
