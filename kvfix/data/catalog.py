"""The table of datasets. One is asked for by a spec: `scenes`, or `davis2017=DIR` on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kvfix.data.files import faults
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
class Dataset:
    """One row of the table; `read` is None for a dataset that is made on the spot."""

    name: str
    tasks: tuple[str, ...]
    split: str
    size: str  # of the official download, approximate
    source: str  # where it comes from, and under which terms
    tree: str = ""  # the folder tree that is expected
    read: Callable[[Path], UnitSet] | None = None
    problems: Callable[[Path], Iterator[str]] | None = None  # None: what reading each unit raises
    notes: Callable[[Path], Iterator[str]] | None = None  # what is there, where parts may be absent

    @property
    def spec(self) -> str:
        """What to pass as --data."""
        return self.name if self.read is None else f"{self.name}=DIR"


_DATASETS = (
    Dataset("scenes", SCENE_TASKS, "test", "none", "painted by kvfix from a seed, Apache-2.0"),
    Dataset(
        "davis2017",
        ("temporal_correspondence",),
        "val",
        "30 clips, 0.8 GB with train (TrainVal, 480p)",
        "davischallenge.org; research use, see its terms",
        davis.TREE,
        davis.DAVIS_2017.clips,
        davis.DAVIS_2017.problems,
    ),
    Dataset(
        "davis2016",
        ("temporal_correspondence",),
        "val",
        "20 clips of one object, 1.9 GB with train (480p)",
        "davischallenge.org; research use, see its terms",
        davis2016.TREE,
        davis2016.DAVIS_2016.clips,
        davis2016.DAVIS_2016.problems,
    ),
    Dataset(
        "spair71k",
        ("semantic_correspondence",),
        "test",
        "12,234 pairs, 0.3 GB with train",
        "cvlab.postech.ac.kr/research/SPair-71k; PASCAL photos, research use",
        spair.TREE,
        spair.spair_pairs,
        spair.spair_problems,
    ),
    Dataset(
        "pascal5i",
        ("foreground_segmentation",),
        "val, 4 folds",
        "4,000 episodes of 1,449 photos, 2 GB with train (VOC2012)",
        "host.robots.ox.ac.uk/pascal/VOC/voc2012, masks with SBD's; Flickr's terms",
        pascal.TREE,
        pascal.pascal_episodes,
        pascal.pascal_problems,
        pascal.pascal_notes,
    ),
    Dataset(
        "msrc",
        ("cosegmentation",),
        "all",
        "14 groups of about 30 photos, 0.2 GB as BMP",
        "Microsoft Research Cambridge photos in co-segmentation groups; research use",
        msrc.TREE,
        msrc.msrc_groups,
        msrc.msrc_problems,
    ),
    Dataset(
        "imagenet_s",
        ("semantic_segmentation",),
        "validation",
        "752, 4,097 or 12,419 photos (50, 300, 919 classes), 1.6 GB for 919",
        "github.com/LUSSeg/ImageNet-S, photos of ImageNet; research use",
        imagenet_s.TREE,
        imagenet_s.imagenet_s_sentences,
        imagenet_s.imagenet_s_problems,
        imagenet_s.imagenet_s_notes,
    ),
    Dataset(
        "refcoco",
        ("referring_segmentation",),
        "testA or testB",
        "1,975 or 1,810 objects, 0.13 GB each",
        "huggingface.co/datasets/lmms-lab/RefCOCO, photos of COCO; see its terms",
        refcoco.TREE,
        refcoco.refcoco_sentences,
        refcoco.refcoco_problems,
        refcoco.refcoco_notes,
    ),
    Dataset(
        "blink",
        (MCQ,),
        "val",
        "1,901 questions on 3,675 images",
        "huggingface.co/datasets/BLINK-Benchmark/BLINK, Apache-2.0 by its card",
        blink.TREE,
        blink.blink_questions,
        notes=blink.blink_notes,
    ),
    Dataset(
        "mcq",
        (MCQ,),
        "own",
        "any number of questions",
        "your own questions with 2 to 10 choices",
        own_questions.TREE,
        own_questions.own_questions,
        notes=own_questions.own_notes,
    ),
)
CATALOG = MappingProxyType({dataset.name: dataset for dataset in _DATASETS})


class _Asked(NamedTuple):
    dataset: Dataset
    folder: Path


def _parse(spec: str) -> _Asked:
    """Take `name` or `name=DIR` apart; a name that is unknown or lacks its DIR is a WrongSpec."""
    name, sign, folder = spec.partition("=")
    dataset = CATALOG.get(name)
    if dataset is None:
        raise WrongSpec(f"data: expected one of {', '.join(CATALOG)}, found {name!r}")
    if dataset.read is None and sign:
        raise WrongSpec(f"data: expected `{name}` without a folder, found {spec!r}")
    if dataset.read is not None and not folder:
        raise WrongSpec(
            f"data: expected {name}=DIR, found {spec!r}; `kvfix data list` shows the tree"
        )
    return _Asked(dataset, Path(folder).expanduser())


def load_units(
    specs: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    questions: bool = False,
) -> list[UnitSet]:
    """One unit set for each task of each dataset; no photo is decoded yet.

    A dataset stands once among the specs; tasks None are all that the datasets offer, but for
    `mcq`, which only a caller with `questions` can score. A limit is the most units of a set;
    scenes, which never run out, give exactly that many. What cannot be meant is a WrongSpec.
    """
    if limit is not None and limit < 1:
        raise WrongSpec(f"limit: expected at least 1, found {limit}")
    asked = check_words(specs, tasks=tasks)
    _check_questions(tasks, asked, questions)
    return [
        scene_units(task, n=limit) if dataset.read is None else dataset.read(folder).head(limit)
        for dataset, folder in asked
        for task in dataset.tasks
        if (tasks is None or task in tasks) and (task != MCQ or questions)
    ]


def check_words(specs: Sequence[str], *, tasks: Sequence[str] | None) -> list[_Asked]:
    """Refuse at once, by a WrongSpec, what `load_units` would refuse without a look at the disk."""
    if not specs:
        raise WrongSpec(f"data: expected at least one of {', '.join(CATALOG)}, found none")
    asked = [_parse(spec) for spec in specs]
    names = [a.dataset.name for a in asked]
    for name in names:
        if names.count(name) > 1:
            raise WrongSpec(
                f"data: expected each dataset once, found {name} {names.count(name)} times"
            )
    _check_tasks(tasks, asked)
    return asked


def _check_tasks(tasks: Sequence[str] | None, asked: Sequence[_Asked]) -> None:
    """Every asked task must be offered by an asked dataset."""
    every = sorted({task for dataset in _DATASETS for task in dataset.tasks})
    for task in tasks or ():
        if task not in every:
            raise WrongSpec(f"task: expected one of {', '.join(every)}, found {task!r}")
        if not any(task in a.dataset.tasks for a in asked):
            given = ", ".join(a.dataset.name for a in asked)
            able = ", ".join(d.name for d in _DATASETS if task in d.tasks)
            raise WrongSpec(f"task {task}: expected data that offers it ({able}), found {given}")


def _check_questions(tasks: Sequence[str] | None, asked: Sequence[_Asked], questions: bool) -> None:
    """A caller that only probes must not be handed questions, nor left with nothing to do."""
    if questions:
        return
    if MCQ in (tasks or ()):
        raise WrongSpec(
            f"task {MCQ}: expected a task that probes score; `kvfix eval` answers {MCQ}"
        )
    for dataset, _ in asked:
        if set(dataset.tasks) == {MCQ}:
            raise WrongSpec(
                f"data {dataset.name}: expected data for probes, found only questions; "
                "`kvfix eval` answers them"
            )


def notes(spec: str) -> list[str]:
    """What a dataset's folder holds, where it may be a part; raises as `load_units`."""
    dataset, folder = _parse(spec)
    return [] if dataset.notes is None else list(dataset.notes(folder))


def check(spec: str) -> list[str]:
    """What is wrong with a dataset's folder, in plain words; empty when it is fine.

    Every listed file is decoded: up to a minute on an official dataset. May raise WrongSpec.
    """
    dataset, folder = _parse(spec)
    if dataset.read is None:
        return []
    problems: list[str] = []
    more = 0
    try:
        if dataset.problems is not None:
            found = dataset.problems(folder)
        else:
            units = dataset.read(folder)
            found = faults(units.load, *range(len(units)))
        for problem in found:
            if len(problems) < MOST_PROBLEMS:
                problems.append(problem)
            else:
                more += 1
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return [*problems, f"... and {more} more"] if more else problems
