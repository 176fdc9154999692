"""Small benchmark folders in the official layouts, with pictures that tell which file they are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

WIDTH, HEIGHT = 32, 24

# Classes of Pascal VOC by photo: two of fold 0, one of each other fold.
PASCAL_SHOWN: dict[str, tuple[int, ...]] = {
    "a": (1,),
    "b": (2, 1),
    "c": (2, 15),
    "d": (15,),
    "e": (15, 6),
    "f": (6, 20),
    "g": (20,),
}


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


def pascal(root: Path, shown: dict[str, tuple[int, ...]], *, side: int = 100) -> Path:
    """A VOC2012 folder; `shown` = photo -> classes, each a block of 2,500 pixels, void between."""
    for k, (name, classes) in enumerate(shown.items()):
        photo(root / "JPEGImages" / f"{name}.jpg", 10 * k, (side, side + 20))
        mask(root / "SegmentationClassAug" / f"{name}.png", pascal_labels(classes, side))
    path = root / "ImageSets/Segmentation/val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(shown) + "\n")
    return root


def pascal_labels(classes: tuple[int, ...], side: int = 100) -> np.ndarray:
    """Up to three classes in the corners of (side + 20, side), void in the last row."""
    out = np.zeros((side + 20, side), np.uint8)
    for label, (y, x) in zip(classes, ((0, 0), (0, 50), (50, 0)), strict=False):
        out[y : y + 50, x : x + 50] = label
    if classes:
        out[-1] = 255
    return out


def msrc(root: Path, groups: dict[str, int], *, suffix: str = ".bmp") -> Path:
    """An MSRC folder, n photos a group: photo k has brightness 20 + 10 k, its object column k."""
    for name, n in groups.items():
        for k in range(n):
            photo(root / name / f"5_{k}_s{suffix}", 10 * k)
            truth = np.zeros((HEIGHT, WIDTH), np.uint8)
            truth[4:20, k : k + 10] = 255
            truth[4, k : k + 10] = 127  # the soft edge: background
            truth[19, k : k + 10] = 128  # and foreground
            path = root / name / "GroundTruth" / f"5_{k}_s.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([truth] * 3, axis=-1)).save(path)
    return root


def class_map(path: Path, ids_HW: np.ndarray) -> Path:
    """An ImageNet-S mask: R + 256 G."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids_HW % 256, ids_HW // 256, np.zeros_like(ids_HW)], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    return path


def imagenet_s(root: Path, classes: dict[str, int], *, ids: dict[str, int] | None = None) -> Path:
    """An ImageNet-S subset, n images a WordNet id: row 0 of a mask is 1000, a block its class."""
    ids = ids or {w: i for i, w in enumerate(sorted(classes), start=1)}
    for wordnet_id, n in classes.items():
        for k in range(n):
            name = f"ILSVRC2012_val_{k:08d}"
            photo(root / "validation" / wordnet_id / f"{name}.JPEG", 10 * k)
            labels_HW = np.zeros((HEIGHT, WIDTH), np.int64)
            labels_HW[0] = 1000
            labels_HW[5:15, 5 : 15 + k] = ids[wordnet_id]
            class_map(root / "validation-segmentation" / wordnet_id / f"{name}.png", labels_HW)
    return root


def refcoco_row(name: str, polygon: list[float], answer: list[str], shade: int = 0) -> dict:
    """A row in the columns of the hub's RefCOCO."""
    noise = np.random.default_rng(0).integers(-20, 21, (HEIGHT, WIDTH, 3))
    encoded = io.BytesIO()
    Image.fromarray((shade + 20 + noise).astype(np.uint8)).save(encoded, "jpeg", quality=95)
    return {
        "question_id": name,
        "image": {"bytes": encoded.getvalue(), "path": None},
        "question": "Please caption the area.",
        "answer": answer,
        "segmentation": polygon,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "iscrowd": 0,
        "file_name": name,
    }


def parquet(path: Path, rows: list[dict], *, group: int = 2) -> Path:
    """Rows as one parquet file of small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path
