"""The table of datasets: what kvfix can read, where it comes from, and the folder tree it expects.

A dataset is asked for by a spec: `scenes`, or `davis2017=DIR` for one that lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kvfix.data.readers import (
    blink,
    davis,
    davis2016,
    imagenet_s,
    msrc,
    own_questions,
    pascal,
    refcoco,
    spair,
)
from kvfix.data.scenes.units import SCENE_TASKS, scene_units
from kvfix.data.units import MCQ, UnitSet

MOST_PROBLEMS = 50  # lines that `check` gives before it only counts


class WrongSpec(ValueError):
    """A dataset or task asked for in a way that cannot be meant, whatever lies on disk."""


@dataclass(frozen=True)
class OnDisk:
    """How a dataset that lies in a folder is read and checked."""

    tree: str  # the folder tree expected
    readers: Mapping[str, Callable[[Path], UnitSet]]  # by task
    problems: Callable[[Path], Iterator[str]]
    notes: Callable[[Path], Iterator[str]] | None = None  # what is there, where parts may be absent


@dataclass(frozen=True)
class Entry:
    """One dataset of the table; `disk` is None for one that is made on the spot."""

    name: str
    tasks: tuple[str, ...]
    split: str
    size: str  # of the official download, approximate
    source: str  # where it comes from, and under which terms
    disk: OnDisk | None = None


class Row(NamedTuple):
    """One line of `kvfix data list`."""

    name: str
    tasks: tuple[str, ...]
    spec: str  # what to pass as --data
    split: str
    size: str
    source: str
    tree: str


def _on_disk(
    name: str,
    split: str,
    size: str,
    source: str,
    *,
    tree: str,
    readers: dict[str, Callable[[Path], UnitSet]],
    problems: Callable[[Path], Iterator[str]],
    notes: Callable[[Path], Iterator[str]] | None = None,
) -> Entry:
    disk = OnDisk(tree, MappingProxyType(readers), problems, notes)
    return Entry(name, tuple(readers), split, size, source, disk)


CATALOG: Mapping[str, Entry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Entry(
                "scenes", SCENE_TASKS, "test", "none", "painted by kvfix from a seed, Apache-2.0"
            ),
            _on_disk(
                "davis2017",
                "val",
                "30 clips, 0.8 GB with train (TrainVal, 480p)",
                "davischallenge.org; research use, see its terms",
                tree=davis.TREE,
                readers={"temporal_correspondence": davis.davis_clips},
                problems=davis.davis_problems,
            ),
            _on_disk(
                "davis2016",
                "val",
                "20 clips of one object, 1.9 GB with train (480p)",
                "davischallenge.org; research use, see its terms",
                tree=davis2016.TREE,
                readers={"temporal_correspondence": davis2016.davis2016_clips},
                problems=davis2016.davis2016_problems,
            ),
            _on_disk(
                "spair71k",
                "test",
                "12,234 pairs, 0.3 GB with train",
                "cvlab.postech.ac.kr/research/SPair-71k; PASCAL photos, research use",
                tree=spair.TREE,
                readers={"semantic_correspondence": spair.spair_pairs},
                problems=spair.spair_problems,
            ),
            _on_disk(
                "pascal5i",
                "val, 4 folds",
                "4,000 episodes of 1,449 photos, 2 GB with train (VOC2012)",
                "host.robots.ox.ac.uk/pascal/VOC/voc2012, masks with SBD's; Flickr's terms",
                tree=pascal.TREE,
                readers={"foreground_segmentation": pascal.pascal_episodes},
                problems=pascal.pascal_problems,
                notes=pascal.pascal_notes,
            ),
            _on_disk(
                "msrc",
                "all",
                "14 groups of about 30 photos, 0.2 GB as BMP",
                "Microsoft Research Cambridge photos in co-segmentation groups; research use",
                tree=msrc.TREE,
                readers={"cosegmentation": msrc.msrc_groups},
                problems=msrc.msrc_problems,
            ),
            _on_disk(
                "imagenet_s",
                "validation",
                "752, 4,097 or 12,419 photos (50, 300, 919 classes), 1.6 GB for 919",
                "github.com/LUSSeg/ImageNet-S, photos of ImageNet; research use",
                tree=imagenet_s.TREE,
                readers={"semantic_segmentation": imagenet_s.imagenet_s_sentences},
                problems=imagenet_s.imagenet_s_problems,
                notes=imagenet_s.imagenet_s_notes,
            ),
            _on_disk(
                "refcoco",
                "testA or testB",
                "1,975 or 1,810 objects, 0.13 GB each",
                "huggingface.co/datasets/lmms-lab/RefCOCO, photos of COCO; see its terms",
                tree=refcoco.TREE,
                readers={"referring_segmentation": refcoco.refcoco_sentences},
                problems=refcoco.refcoco_problems,
                notes=refcoco.refcoco_notes,
            ),
            _on_disk(
                "blink",
                "val",
                "1,901 questions on 3,675 images",
                "huggingface.co/datasets/BLINK-Benchmark/BLINK, Apache-2.0 by its card",
                tree=blink.TREE,
                readers={MCQ: blink.blink_questions},
                problems=blink.blink_problems,
                notes=blink.blink_notes,
            ),
            _on_disk(
                "mcq",
                "own",
                "any number of questions",
                "your own questions with 2 to 10 choices",
                tree=own_questions.TREE,
                readers={MCQ: own_questions.own_questions},
                problems=own_questions.own_problems,
                notes=own_questions.own_notes,
            ),
        )
    }
)


class _Asked(NamedTuple):
    entry: Entry
    folder: Path | None


def _parse(spec: str) -> _Asked:
    """`name` or `name=DIR` -> entry and folder.

    Raises:
        WrongSpec: an unknown name, a missing DIR, or a DIR for a dataset that needs none.
    """
    name, sign, folder = spec.partition("=")
    entry = CATALOG.get(name)
    if entry is None:
        raise WrongSpec(f"data: expected one of {', '.join(CATALOG)}, found {name!r}")
    if entry.disk is None:
        if sign:
            raise WrongSpec(f"data: expected `{name}` without a folder, found {spec!r}")
        return _Asked(entry, None)
    if not folder:
        raise WrongSpec(
            f"data: expected {name}=DIR, found {spec!r}; `kvfix data list` shows the tree"
        )
    return _Asked(entry, Path(folder).expanduser())


def load_units(
    specs: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    questions: bool = False,
) -> list[UnitSet]:
    """Unit sets of the asked datasets, one a dataset and task; no photo is decoded yet.

    Args:
        specs: such as `scenes` or `davis2017=DIR`; each dataset at most once.
        tasks: task names to keep; None for all that the datasets offer.
        limit: units a set at most; scenes, which never run out, give exactly that many.
        questions: whether the caller can answer questions (task `mcq`), which no probe scores.

    Raises:
        WrongSpec: no or an unknown dataset, a dataset twice, a missing DIR, a task that none of the
            asked datasets offers, nothing but questions for a caller that cannot answer them, a
            limit below 1.
        ValueError: an empty dataset.
        FileNotFoundError: the folder or parts of its tree do not exist.
    """
    if limit is not None and limit < 1:
        raise WrongSpec(f"limit: expected at least 1, found {limit}")
    asked = _asked(specs, tasks)
    _check_questions(tasks, asked, questions)
    sets = []
    for entry, folder in asked:
        for task in entry.tasks:
            if tasks is not None and task not in tasks:
                continue
            if task == MCQ and not questions:
                continue
            if entry.disk is None or folder is None:
                sets.append(scene_units(task, n=limit))
            else:
                sets.append(entry.disk.readers[task](folder).head(limit))
    return sets


def check_words(specs: Sequence[str], *, tasks: Sequence[str] | None) -> None:
    """Refuse at once what `load_units` would refuse without a look at the disk.

    Raises:
        WrongSpec: see `load_units`.
    """
    _asked(specs, tasks)


def _asked(specs: Sequence[str], tasks: Sequence[str] | None) -> list[_Asked]:
    if not specs:
        raise WrongSpec(f"data: expected at least one of {', '.join(CATALOG)}, found none")
    asked = [_parse(spec) for spec in specs]
    names = [a.entry.name for a in asked]
    for name in names:
        if names.count(name) > 1:
            raise WrongSpec(
                f"data: expected each dataset once, found {name} {names.count(name)} times"
            )
    _check_tasks(tasks, asked)
    return asked


def _check_tasks(tasks: Sequence[str] | None, asked: Sequence[_Asked]) -> None:
    """Every asked task must be offered by an asked dataset."""
    every = sorted({t for entry in CATALOG.values() for t in entry.tasks})
    for task in tasks or ():
        if task not in every:
            raise WrongSpec(f"task: expected one of {', '.join(every)}, found {task!r}")
        if not any(task in a.entry.tasks for a in asked):
            given = ", ".join(a.entry.name for a in asked)
            able = ", ".join(e.name for e in CATALOG.values() if task in e.tasks)
            raise WrongSpec(f"task {task}: expected data that offers it ({able}), found {given}")


def _check_questions(tasks: Sequence[str] | None, asked: Sequence[_Asked], questions: bool) -> None:
    """A caller that only probes must not be handed questions, nor left with nothing to do."""
    if questions:
        return
    if MCQ in (tasks or ()):
        raise WrongSpec(
            f"task {MCQ}: expected a task that probes score; `kvfix eval` answers {MCQ}"
        )
    for entry, _ in asked:
        if set(entry.tasks) == {MCQ}:
            raise WrongSpec(
                f"data {entry.name}: expected data for probes, found only questions; `kvfix eval` "
                "answers them"
            )


def notes(spec: str) -> list[str]:
    """What a dataset's folder holds, where it may be a part of the whole; empty for other data.

    Raises:
        WrongSpec: the spec itself is wrong (see `load_units`).
        ValueError: files that cannot be read.
        FileNotFoundError: the folder does not exist or holds none of the data.
    """
    entry, folder = _parse(spec)
    if entry.disk is None or folder is None or entry.disk.notes is None:
        return []
    return list(entry.disk.notes(folder))


def check(spec: str) -> list[str]:
    """What is wrong with a dataset's folder, in plain words, a line each; empty when it is fine.

    Every listed file is opened and decoded, so this takes up to a minute on an official dataset.

    Raises:
        WrongSpec: the spec itself is wrong (see `load_units`).
    """
    entry, folder = _parse(spec)
    if entry.disk is None or folder is None:
        return []
    problems: list[str] = []
    more = 0
    try:
        for problem in entry.disk.problems(folder):
            if len(problems) < MOST_PROBLEMS:
                problems.append(problem)
            else:
                more += 1
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return [*problems, f"... and {more} more"] if more else problems


def describe() -> list[Row]:
    """The table as rows for `kvfix data list`."""
    return [
        Row(
            entry.name,
            entry.tasks,
            entry.name if entry.disk is None else f"{entry.name}=DIR",
            entry.split,
            entry.size,
            entry.source,
            "" if entry.disk is None else entry.disk.tree,
        )
        for entry in CATALOG.values()
    ]
