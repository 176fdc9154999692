"""Small benchmark folders in the official layouts, with pictures that tell which file they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 32, 24


def photo(path: Path, shade: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A JPEG of noise around one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(-20, 21, (size[1], size[0], 3))
    Image.fromarray((shade + 20 + noise).astype(np.uint8)).save(path, quality=95)
    return path


def mask(path: Path, labels_HW: np.ndarray) -> Path:
    """A mode-P PNG with a palette whose colours are unlike the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = labels_HW.shape
    paletted = Image.frombytes("P", (width, height), labels_HW.astype(np.uint8).tobytes())
    paletted.putpalette([255 - i // 3 for i in range(768)])
    paletted.save(path)
    return path


def labels(t: int, objects: int = 2) -> np.ndarray:
    """Objects 1..n as blocks that move right with `t`."""
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(objects):
        out[4 + 8 * k : 10 + 8 * k, 2 + t : 10 + t] = k + 1
    return out


def davis(root: Path, *, clips: tuple[str, ...] = ("goat", "ants"), frames: int = 5) -> Path:
    """A DAVIS-2017 folder; the mean of frame t is 20 + 10 t."""
    for name in clips:
        for t in range(frames):
            photo(root / "JPEGImages/480p" / name / f"{t:05d}.jpg", 10 * t)
            mask(root / "Annotations/480p" / name / f"{t:05d}.png", labels(t))
    path = root / "ImageSets/2017/val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(clips) + "\n")
    return root


def spair(root: Path, photos: dict[str, str], *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """An SPair-71k folder with every ordered pair within each group, `photos` = category -> names.

    A category may come as several groups, `cat|1`, which share no photo.
    """
    names = []
    for key, group in photos.items():
        category = key.split("|")[0]
        for k, name in enumerate(group):
            photo(root / "JPEGImages" / category / f"{name}.jpg", 20 * k, size)
        for source in group:
            for target in group:
                if source != target:
                    pair = f"{len(names) + 1:06d}-{source}-{target}:{category}"
                    names.append(pair)
                    _annotate(root, pair, source, target, category, size)
    path = root / "Layout/large/test.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(names))
    return root


def _annotate(
    root: Path, pair: str, source: str, target: str, category: str, size: tuple[int, int]
) -> None:
    k = ord(source[-1]) % 4
    fields = {
        "src_imname": f"{source}.jpg",
        "trg_imname": f"{target}.jpg",
        "src_imsize": [*size, 3],
        "trg_imsize": [*size, 3],
        "src_bndbox": [1, 2, 20, 18],
        "trg_bndbox": [3, 4, 25, 20],
        "src_kps": [[5 + k, 6], [12, 9]],
        "trg_kps": [[7, 8], [14 + k, 11]],
        "category": category,
    }
    path = root / "PairAnnotation/test" / f"{pair}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
