"""SPair-71k, test pairs: the same keypoints on two photos of one category.

Layout: juhongm999/hpf. A pair's name, `000001-SRC-TRG:category`, tells its photos, so lists and
clusters cost no annotation file. Two choices are kvfix's own:

Clusters. Pairs that share a photo are not independent. Within a category, pairs that are linked by
shared photos form a cluster; in the official test split all pairs of a category are linked, so the
cluster is the category (18). Where the whole list is one cluster (a single category), nothing could
be resampled: then the cluster is the source photo, which ignores shared target photos and makes
intervals a little narrow; `UnitSet.cluster` says which of the two holds.

Order. The official list is sorted by category, then by source photo. Units come in a fixed
scattered order instead, one category after the other in turn, so that a limit keeps all categories
and many photos.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvfix.data.files import digest, find_root, is_plain, read_list, read_photo
from kvfix.data.groups import grouped, in_turn
from kvfix.data.json_object import json_object
from kvfix.data.pictures.read import read_header
from kvfix.data.units import BadUnit, Pair, Truths, UnitSet
from kvfix.wording import shown

TREE = """\
SPair-71k/                                            DIR is this folder or its parent
  Layout/large/test.txt                               one pair name a line: 000001-SRC-TRG:category
  PairAnnotation/test/000001-SRC-TRG:category.json    keypoints and boxes
  JPEGImages/<category>/SRC.jpg                       photos
"""
_NAME = re.compile(r"(?P<number>\d+)-(?P<source>[^-:]+)-(?P<target>[^-:]+):(?P<category>[^-:]+)")


class _Listed(NamedTuple):
    name: str
    source: str  # photo, without .jpg
    target: str
    category: str


class _Marked(NamedTuple):
    photo: Path
    size: tuple[int, int]  # width, height that the keypoints belong to
    xy: np.ndarray  # float64 (K, 2)
    box: tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class PairTruth:
    """The target side of a pair."""

    id: str
    cluster: str
    category: str
    xy: np.ndarray  # float64 (K, 2), pixels of the target photo
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    size: tuple[int, int]  # width, height of the target photo


def spair_pairs(folder: Path) -> UnitSet:
    """The test pairs of SPair-71k; reads the list, annotations (for the digest) and photo sizes."""
    root = _root(folder)
    pairs = _listed(root)
    clusters, word = _clusters(pairs)
    photos = {_photo(root, p.category, n) for p in pairs for n in (p.source, p.target)}
    return _unit_set(root, pairs, partial(_load, root, pairs, clusters), photos, word)


def spair_truths(folder: Path) -> Truths[PairTruth]:
    """The truth of the test pairs, from the annotations alone: the photos need not be there."""
    root = _root(folder, photos=False)
    pairs = _listed(root)
    clusters, word = _clusters(pairs)

    def load(index: int) -> PairTruth:
        pair = pairs[index]
        target = _read_annotation(root, pair)[1]
        return PairTruth(
            pair.name, clusters[index], pair.category, target.xy, target.box, target.size
        )

    units = _unit_set(root, pairs, partial(_load, root, pairs, clusters), set(), word)
    return Truths(units, load)


def _unit_set(
    root: Path,
    pairs: tuple[_Listed, ...],
    load: Callable[[int], Pair],
    photos: set[Path],
    word: str,
) -> UnitSet:
    annotations = [_annotation(root, p.name) for p in pairs]
    sha256 = digest(root, annotations=[_list_file(root), *annotations], photos=photos)
    names = tuple(p.name for p in pairs)
    return UnitSet("semantic_correspondence", "spair71k", "test", names, load, sha256, word)


def _clusters(pairs: tuple[_Listed, ...]) -> tuple[tuple[str, ...], str]:
    """The cluster of each pair, and what a cluster is."""
    groups = _photo_groups(pairs)
    if len(set(groups.values())) > 1:
        clusters = tuple(groups[p.name] for p in pairs)
        return clusters, (
            "category" if set(clusters) == {p.category for p in pairs} else "linked photos"
        )
    return tuple(f"{p.category}/{p.source}" for p in pairs), "source photo"


def spair_problems(folder: Path) -> Iterator[str]:
    """Everything wrong with an SPair-71k folder; decodes every listed photo once."""
    root = _root(folder)
    photos: dict[Path, set[tuple[int, int]]] = {}
    for pair in _listed(root):
        try:
            for side in _read_annotation(root, pair):
                photos.setdefault(side.photo, set()).add(side.size)
        except BadUnit as error:
            yield str(error)
    for path, sizes in photos.items():
        try:
            for size in sorted(sizes):
                _check_size(path, size)
            read_photo(path)
        except BadUnit as error:
            yield str(error)


def _root(folder: Path, *, photos: bool = True) -> Path:
    wants = ("Layout/large/test.txt", "PairAnnotation/test", *(("JPEGImages",) if photos else ()))
    return find_root(folder, name="SPair-71k", holds=wants)


def _list_file(root: Path) -> Path:
    return root / "Layout" / "large" / "test.txt"


def _annotation(root: Path, name: str) -> Path:
    return root / "PairAnnotation" / "test" / f"{name}.json"


def _photo(root: Path, category: str, name: str) -> Path:
    return root / "JPEGImages" / category / f"{name}.jpg"


def _listed(root: Path) -> tuple[_Listed, ...]:
    """The listed pairs in their scattered order: by hash of the name, categories in turn."""
    found = []
    for name in read_list(_list_file(root)):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{_list_file(root)}: expected pair names like 000001-SRC-TRG:category, found "
                f"{shown(name)}"
            )
        found.append(_Listed(name, match["source"], match["target"], match["category"]))
    found.sort(key=lambda p: hashlib.sha256(p.name.encode()).digest())
    by_category = grouped(found, lambda p: p.category)
    return in_turn(by_category[c] for c in sorted(by_category))


def _photo_groups(pairs: tuple[_Listed, ...]) -> dict[str, str]:
    """Pair name -> its group of pairs linked by photos: `horse`, or `horse 2` of several."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def head(photo: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(photo, photo)
        while parent[photo] != photo:
            parent[photo] = photo = parent[parent[photo]]
        return photo

    for p in pairs:
        a, b = sorted((head((p.category, p.source)), head((p.category, p.target))))
        parent[b] = a
    heads: dict[str, list[tuple[str, str]]] = {}
    for p in sorted(pairs):
        known = heads.setdefault(p.category, [])
        if head((p.category, p.source)) not in known:
            known.append(head((p.category, p.source)))
    out = {}
    for p in pairs:
        known = heads[p.category]
        number = known.index(head((p.category, p.source))) + 1
        out[p.name] = p.category if len(known) == 1 else f"{p.category} {number}"
    return out


def _load(root: Path, pairs: tuple[_Listed, ...], clusters: tuple[str, ...], index: int) -> Pair:
    pair = pairs[index]
    source, target = (_upright(side) for side in _read_annotation(root, pair))
    return Pair(
        pair.name,
        clusters[index],
        read_photo(source.photo),
        read_photo(target.photo),
        source.xy,
        target.xy,
        target.box,
        pair.category,
    )


def _upright(side: _Marked) -> _Marked:
    _check_size(side.photo, side.size)
    header = read_header(side.photo)
    corners = header.points(np.array(side.box).reshape(2, 2), side.size)
    low, high = corners.min(axis=0), corners.max(axis=0)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return side._replace(size=header.size, xy=header.points(side.xy, side.size), box=box)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    header = read_header(path)
    if header.turn_of(size) is None:
        found = header.stored
        raise BadUnit(
            f"{path}: expected {size[0]} x {size[1]} pixels (its keypoints are given for them), "
            f"found {found[0]} x {found[1]}"
        )


def _read_annotation(root: Path, pair: _Listed) -> tuple[_Marked, _Marked]:
    path = _annotation(root, pair.name)
    try:
        fields = json_object(path.read_bytes(), path)
    except FileNotFoundError:
        hint = ""
        if list(path.parent.glob(pair.name.replace(":", "?") + ".json")):
            hint = "; a file without the ':' stands there, so the copy changed the names"
        raise BadUnit(f"{path}: expected the pair's annotation, found no such file{hint}") from None
    except OSError as error:
        raise BadUnit(f"{path}: expected JSON, found none that can be read ({error})") from error
    except ValueError as error:
        raise BadUnit(str(error)) from error
    source, target = (_side(root, pair, path, fields, prefix) for prefix in ("src", "trg"))
    if len(source.xy) != len(target.xy):
        raise BadUnit(
            f"{path}: expected as many trg_kps as src_kps, found {len(target.xy)} and "
            f"{len(source.xy)}"
        )
    return source, target


def _side(root: Path, pair: _Listed, path: Path, fields: dict[str, Any], prefix: str) -> _Marked:
    photo = fields.get(f"{prefix}_imname")
    if not isinstance(photo, str) or not is_plain(photo):
        raise BadUnit(f"{path}: expected {prefix}_imname, a file name, found {shown(photo)}")
    xy = _numbers(path, fields, f"{prefix}_kps").reshape(-1, 2)
    size = _numbers(path, fields, f"{prefix}_imsize", at_least=2)[:2]
    box = _numbers(path, fields, f"{prefix}_bndbox", at_least=4)[:4]
    if box[2] <= box[0] or box[3] <= box[1]:
        raise BadUnit(f"{path}: expected {prefix}_bndbox x0 y0 x1 y1, found {box.tolist()}")
    return _Marked(
        root / "JPEGImages" / pair.category / photo,
        (int(size[0]), int(size[1])),
        xy,
        (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
    )


def _numbers(path: Path, fields: dict[str, Any], key: str, *, at_least: int = 0) -> np.ndarray:
    """A field as flat finite float64; keypoints (`at_least` 0) must be one or more (x, y)."""
    try:
        values = np.asarray(fields.get(key), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    points = values.ndim == 2 and values.shape[1] == 2 and len(values) > 0
    shaped = values.ndim == 1 and values.size >= at_least if at_least else points
    if not shaped or not np.isfinite(values).all():
        what = f"{at_least} or more numbers" if at_least else "one or more [x, y]"
        raise BadUnit(f"{path}: expected {key}, {what}, found {shown(fields.get(key))}")
    return values.ravel()
