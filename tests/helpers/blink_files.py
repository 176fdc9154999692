"""Small BLINK folders: hub parquet with its columns, images that tell which question is whose."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGES = ("image_1", "image_2", "image_3", "image_4")
_CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("idx", "question", "sub_task")),
        *((name, _CELL) for name in IMAGES),
        ("choices", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("answer", "prompt", "explanation")),
    ]
)


def encoded(shade: int, *, size: tuple[int, int] = (20, 10), **save: Any) -> bytes:
    """A JPEG of noise around one grey."""
    noise = np.random.default_rng(shade).integers(-9, 10, (size[1], size[0], 3))
    stream = io.BytesIO()
    Image.fromarray((shade + 10 + noise).astype(np.uint8)).save(stream, "JPEG", **save)
    return stream.getvalue()


def cell(shade: int) -> dict[str, Any]:
    """An image as the hub stores it."""
    return {"bytes": encoded(shade), "path": None}


def row(config: str, number: int, *, images: int = 1, **changed: Any) -> dict[str, Any]:
    """Question `number` of a config; image k of it is of grey 20 * number + k."""
    choices = ["left", "right", "up"][: 2 + number % 2]
    lettered = "\n".join(f"({'ABC'[i]}) {c}" for i, c in enumerate(choices))
    shown = {name: cell(20 * number + k) if k < images else None for k, name in enumerate(IMAGES)}
    return {
        "idx": f"val_{config}_{number}",
        "question": f"Where is thing {number}?",
        "sub_task": config,
        **shown,
        "choices": choices,
        "answer": f"({'AB'[number % 2]})",
        "prompt": f"Look. Where is thing {number}?\nSelect one.\n{lettered}",
        "explanation": "",
        **changed,
    }


def write(path: Path, rows: list[dict[str, Any]], *, group: int | None = None) -> Path:
    """One parquet file, `group` rows a row group; a column that no row has is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = [f for f in SCHEMA if any(f.name in r for r in rows)]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(there)), path, row_group_size=group)
    return path


def blink(root: Path, counts: dict[str, int], *, group: int | None = None) -> Path:
    """A folder by config; Jigsaw questions have three images."""
    for config, n in counts.items():
        rows = [row(config, k, images=3 if config == "Jigsaw" else 1) for k in range(1, n + 1)]
        write(root / config / "val-00000-of-00001.parquet", rows, group=group)
    return root
