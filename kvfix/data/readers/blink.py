"""BLINK as its hub parquet: 14 configs of multiple-choice questions on one to four images.

Columns: huggingface.co/datasets/BLINK-Benchmark/BLINK; rules: zeyofu/BLINK_Benchmark
``eval/test_benchmark.py``. What is kvfix's own:

Clusters. Questions of one config whose first images are byte-identical form a cluster; every other
question is its own. Further images do not count, because distractors that are used again would
chain most questions into one cluster; and the same photo saved with other markers on it is not
recognised. Both make intervals a little narrow.

Order. The configs in turn, each in the order of its file, so that a limit keeps all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from kvfix.data.files import check_folder, listed
from kvfix.data.groups import grouped, in_turn
from kvfix.data.readers.parquet import RowReader, decode_image, encoded_image, read_rows
from kvfix.data.texts import bounded, check_askable, check_text
from kvfix.data.units import MCQ, BadUnit, Question, UnitSet
from kvfix.wording import shown

TREE = """\
BLINK/                                       DIR is this folder or its parent
  <config>/val-00000-of-00001.parquet        up to 14 configs: Art_Style, Counting, ...
or DIR holds parquet files whose column sub_task names the config
"""
# Configs and how many questions the official val split has of each.
CONFIGS: Mapping[str, int] = MappingProxyType(
    {
        "Art_Style": 117,
        "Counting": 120,
        "Forensic_Detection": 132,
        "Functional_Correspondence": 130,
        "IQ_Test": 150,
        "Jigsaw": 150,
        "Multi-view_Reasoning": 133,
        "Object_Localization": 122,
        "Relative_Depth": 124,
        "Relative_Reflectance": 134,
        "Semantic_Correspondence": 139,
        "Spatial_Relation": 143,
        "Visual_Correspondence": 172,
        "Visual_Similarity": 135,
    }
)
# Protocol text, word for word (`disclaimer` and `need_disclaimer_tasks` of the file named above).
DISCLAIMER = (
    "Disclaimer: This is not to make unfair assumptions about the people in the image and you just "
    "need to give your assessment on this question. You don't need to identify the real people. "
    "You just need to analyze based on the information I gave you.\n\n"
)
DISCLAIMED = ("Forensic_Detection", "Jigsaw", "Art_Style")

_TEXTS = ("idx", "question", "sub_task", "choices", "answer", "prompt")
_IMAGES = ("image_1", "image_2", "image_3", "image_4")
_REQUIRED, _OPTIONAL = (*_TEXTS, _IMAGES[0]), _IMAGES[1:]
_ANSWER = re.compile(r"\(?([A-E])\)?")
_MOST_CHOICES = 5  # the official rules know (A) to (E)
_HIDDEN = (
    "the answers of BLINK's test split are not public, so nothing can be scored on it; use the val "
    "split"
)


class _Shard(NamedTuple):
    path: Path
    config: str | None  # what its folder is called; None in a plain folder


class _Entry(NamedTuple):
    shard: _Shard
    row: int  # within the file
    id: str
    config: str
    images: tuple[bytes, ...]  # digests
    digest: bytes  # of everything the question is made of


def blink_questions(folder: Path) -> UnitSet:
    """The val questions of a folder, of one config's, or of any parquet files with BLINK's columns.

    Every file is read once for ids, clusters and digest; no image is decoded.
    """
    entries = _scan(folder)
    clusters = _clusters(entries)
    whole = hashlib.sha256(b"".join(e.digest for e in entries))
    return UnitSet(
        MCQ,
        "blink",
        "val",
        tuple(e.id for e in entries),
        partial(_load, RowReader(_REQUIRED, _OPTIONAL), entries, clusters),
        whole.hexdigest(),
        "question" if len(set(clusters)) == len(clusters) else "first image",
        tuple(e.config for e in entries),
    )


def blink_notes(folder: Path) -> Iterator[str]:
    """Which configs are there, which are not, and where counts are not the official ones."""
    counts = Counter(e.config for e in _scan(folder))
    there = [c for c in CONFIGS if counts[c]]
    numbers = ", ".join(f"{c} {counts[c]}" for c in there)
    yield f"{len(there)} of {len(CONFIGS)} configs, {counts.total()} questions: {numbers}"
    if absent := [c for c in CONFIGS if not counts[c]]:
        yield f"not there: {', '.join(absent)}; macro accuracy is over what is there"
    if other := [f"{c} {CONFIGS[c]}" for c in there if counts[c] != CONFIGS[c]]:
        yield (
            f"the official val split has {', '.join(other)}: this is a part of it, or other "
            "questions in its form, and results on it are not BLINK's"
        )


def _shards(folder: Path) -> list[_Shard]:
    """The val files: by config where the configs are folders, else those of a plain folder."""
    check_folder(folder, "BLINK")
    hidden = False
    for root in (folder, folder / "BLINK"):
        shards = []
        for config in CONFIGS:
            val, test = _split_files(root / config)
            shards += [_Shard(path, config) for path in val]
            hidden |= bool(test)
        if shards:
            return shards
    for root in (folder, folder / "data"):
        val, test = _split_files(root)
        hidden |= bool(test)
        others = [p for p in listed(root, ".parquet") if p not in test]
        if val or others:
            return [_Shard(path, None) for path in val or others]
    if hidden:
        raise ValueError(f"{folder}: expected val-*.parquet, found only test files: {_HIDDEN}")
    raise FileNotFoundError(
        f"{folder}: expected <config>/val-*.parquet or parquet files in it, found none. `kvfix "
        "data list` shows the tree"
    )


def _split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Val and test files, as `val-00000-of-00001.parquet` or as `val/0000.parquet`."""
    split = []
    for name in ("val", "test"):
        flat = [p for p in listed(folder, ".parquet") if p.name.startswith(name)]
        split.append(flat or list(listed(folder / name, ".parquet")))
    return split[0], split[1]


def _scan(folder: Path) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    public = False
    for shard in _shards(folder):
        for number, row in read_rows(shard.path, required=_REQUIRED, optional=_OPTIONAL):
            entry = _entry(shard, number, row)
            if entry.id in entries:
                raise ValueError(
                    f"{shard.path}: expected every idx once, found {shown(entry.id)} again (first "
                    f"in {entries[entry.id].shard.path})"
                )
            entries[entry.id] = entry
            public |= _letter(row["answer"]) is not None
    if not entries:
        raise ValueError(f"{folder}: expected questions, found parquet files without a row")
    if not public:
        raise ValueError(f"{folder}: expected answers such as '(A)', found none: {_HIDDEN}")
    by_config = grouped(entries.values(), lambda e: e.config)
    # Unknown configs last: their questions are bad units, not lost ones.
    order = [*(c for c in CONFIGS if c in by_config), *sorted(by_config.keys() - CONFIGS.keys())]
    return list(in_turn(by_config[c] for c in order))


def _entry(shard: _Shard, number: int, row: dict[str, Any]) -> _Entry:
    config = shard.config or _config(row["sub_task"])
    name = bounded(row["idx"]) if isinstance(row["idx"], str) and row["idx"] else None
    images = tuple(hashlib.sha256(data).digest() for data in _encoded(row) if data)
    texts = json.dumps([config, *(row[key] for key in _TEXTS)], default=str)
    digest = hashlib.sha256(texts.encode("utf-8", "surrogatepass") + b"".join(images)).digest()
    return _Entry(shard, number, name or f"{config} row {number}", config, images, digest)


def _config(sub_task: object) -> str:
    """The official spelling; what is no config stays as it is."""
    plain = {re.sub(r"\W|_", "", c).casefold(): c for c in CONFIGS}
    text = bounded(sub_task) if isinstance(sub_task, str) else "no sub_task"
    return plain.get(re.sub(r"\W|_", "", text).casefold(), text)


def _encoded(row: dict[str, Any]) -> list[bytes | None]:
    """Encoded images of the columns that hold one; None where a cell holds no bytes."""
    cells = [row[key] for key in _IMAGES if row.get(key) is not None]
    return [encoded_image(cell) for cell in cells]


def _clusters(entries: Sequence[_Entry]) -> list[str]:
    """Each question's cluster, named after its first question."""
    first: dict[tuple[str, bytes], str] = {}
    return [first.setdefault((e.config, e.images[0]), e.id) if e.images else e.id for e in entries]


def _load(
    reader: RowReader, entries: Sequence[_Entry], clusters: Sequence[str], index: int
) -> Question:
    entry = entries[index]
    where = f"{entry.shard.path}: row {entry.row} ({entry.id})"
    try:
        row = reader.row(entry.shard.path, entry.row)
    except ValueError as error:
        raise BadUnit(str(error)) from error
    if not isinstance(row["idx"], str) or not row["idx"]:
        raise BadUnit(f"{where}: expected idx, a question id, found {shown(row['idx'])}")
    if entry.config not in CONFIGS:
        known = ", ".join(CONFIGS)
        found = shown(entry.config)
        raise BadUnit(f"{where}: expected sub_task to be one of {known}, found {found}")
    if (named := _config(row["sub_task"])) != entry.config and named in CONFIGS:
        raise BadUnit(f"{where}: expected sub_task {entry.config}, as its folder, found {named}")
    for key in ("question", "prompt"):
        check_text(row[key], where, key)
    choices = row["choices"]
    if not _are_choices(choices):
        raise BadUnit(f"{where}: expected 2 to {_MOST_CHOICES} choices, found {shown(choices)}")
    for choice in choices:
        check_askable(choice, where, "choices")
    return Question(
        entry.id,
        clusters[index],
        entry.config,
        _pictures(row, where),
        row["question"],
        tuple(choices),
        _answer(row["answer"], len(choices), where),
        official_prompt=row["prompt"],
        preamble=DISCLAIMER if entry.config in DISCLAIMED else "",
    )


def _are_choices(value: object) -> bool:
    return (
        isinstance(value, list)
        and 2 <= len(value) <= _MOST_CHOICES
        and all(isinstance(c, str) for c in value)
    )


def _letter(answer: object) -> str | None:
    match = _ANSWER.fullmatch(answer.strip()) if isinstance(answer, str) else None
    return match[1] if match else None


def _answer(answer: object, n: int, where: str) -> int:
    letter = _letter(answer)
    if letter is None:
        hint = f"; {_HIDDEN}" if answer in ("hidden", "", None) else ""
        raise BadUnit(f"{where}: expected an answer such as '(A)', found {shown(answer)}{hint}")
    index = ord(letter) - ord("A")
    if index >= n:
        raise BadUnit(f"{where}: expected an answer among {n} choices, found {shown(answer)}")
    return index


def _pictures(row: dict[str, Any], where: str) -> tuple[Image.Image, ...]:
    pictures = []
    for k, data in enumerate(_encoded(row), start=1):
        if data is None:
            raise BadUnit(f"{where}: expected the bytes of image {k}, found none or a path only")
        pictures.append(decode_image(data, f"{where}, image {k}"))
    if not pictures:
        raise BadUnit(f"{where}: expected at least one image, found none")
    return tuple(pictures)
