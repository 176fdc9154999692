"""Which files of a folder hold one model's predictions, by rules that are said when they choose.

| folder | files that are read |
|---|---|
| a file for each task, or a table | those, but not what is derived from them (``*_acc.csv``) |
| VLMEvalKit's work folder | its own table, else that of its newest ``T<date>_G<commit>`` |
| lmms-eval's output | ``*_samples_*.jsonl``; of reruns the newest by the time in the name |
| a folder that holds one such folder | that folder's |
| a folder that holds several | none: they are named |

Where some files are named for BLINK and others for another benchmark, only the former count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvfix.score.predictions import some

FORMS: Final = (".json", ".jsonl", ".csv", ".tsv", ".xlsx")
_TABLES: Final = (".csv", ".tsv", ".xlsx")
# What suites write beside predictions: scores, judged copies, states of a run.
_DERIVED = re.compile(
    r".*(?:_acc|_acc_all|_score|_scores|_rating|_result|_results|_judge|_judged|_prev|_supp"
    r"|_checkpoint)|status|config|configs|args|results|summary|run",
    re.IGNORECASE,
)
_SAMPLES = re.compile(r"(?:(?P<time>\d{4,8}_\d{4,6}).*?_)?samples_(?P<task>.+)")
_WORK = re.compile(r"T\d{8}_G\w+")


class Chosen(NamedTuple):
    """The files to read, and what was left out of choice, in sentences."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def choose(path: Path) -> Chosen:
    """The files of one model's predictions in a folder; a file is taken as it is."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected predictions, found no such file or folder")
    if not path.is_dir():
        return Chosen((path,))
    samples = [p for p in sorted(path.rglob("*.jsonl")) if _is_samples(p)]
    if samples:
        return _of_lmms_eval(path, samples)
    if here := _candidates(path):
        return _of_one_form(path, here)
    below = [p for p in sorted(path.iterdir()) if p.is_dir() and _holds(p)]
    runs = [p for p in below if _WORK.fullmatch(p.name)]
    if runs:
        chosen = choose(runs[-1])
        note = f"of {len(runs)} runs the newest is scored: {runs[-1].name}"
        return Chosen(chosen.files, (*([note] if len(runs) > 1 else ()), *chosen.notes))
    if len(below) == 1:
        return choose(below[0])
    if below:
        raise _several(path, below)
    raise ValueError(f"{path}: expected prediction files ({', '.join(FORMS)}), found none")


def _several(path: Path, folders: Sequence[Path]) -> ValueError:
    names = [p.relative_to(path).as_posix() for p in folders]
    return ValueError(
        f"{path}: expected one model's results, found {len(names)}: {some(names, 5)}; "
        "name one of them"
    )


def _is_samples(path: Path) -> bool:
    return _visible(path) and bool(_SAMPLES.fullmatch(path.stem)) and path.is_file()


def _visible(path: Path) -> bool:
    return not path.name.startswith((".", "~$"))  # the latter locks a table that is open in Excel


def _holds(folder: Path) -> bool:
    return any(map(_is_form, folder.rglob("*")))


def _is_form(path: Path) -> bool:
    return path.suffix.lower() in FORMS and _visible(path)


def _candidates(folder: Path) -> list[Path]:
    files = [p for p in sorted(folder.iterdir()) if _is_form(p) and p.is_file()]
    return _of_blink([p for p in files if not _DERIVED.fullmatch(p.stem)] or files)


def _of_blink(files: list[Path]) -> list[Path]:
    """Those that are named for BLINK, if some are: `model_BLINK.xlsx`, `..._samples_blink_...`."""
    return [p for p in files if re.search(r"(?:^|_)blink(?:_|$)", p.stem, re.IGNORECASE)] or files


def _of_one_form(path: Path, files: list[Path]) -> Chosen:
    """The files of the first form there is; of tables there must be one."""
    for form in FORMS:
        found = tuple(p for p in files if p.suffix.lower() == form)
        if not found:
            continue
        if form in _TABLES and len(found) > 1:
            raise ValueError(
                f"{path}: expected one prediction table, found "
                f"{some([p.name for p in found], 5)}; name the file"
            )
        others = [p.name for p in files if p not in found]
        notes = (f"beside {found[0].name}, not read: {some(others, 5)}",) if others else ()
        return Chosen(found, notes)
    raise AssertionError("candidates have one of the forms")


def _of_lmms_eval(path: Path, samples: list[Path]) -> Chosen:
    samples = _of_blink(samples)
    folders = sorted({p.parent for p in samples})
    if len(folders) > 1:
        raise _several(path, folders)
    runs: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for file in samples:
        match = _SAMPLES.fullmatch(file.stem)
        assert match is not None
        runs[match["task"]].append((match["time"] or "", file))
    newest = tuple(max(files)[1] for files in runs.values())
    older = len(samples) - len(newest)
    note = f"reruns: {len(newest)} tasks' newest samples are scored, {older} older files are not"
    return Chosen(newest, (note,) if older else ())
