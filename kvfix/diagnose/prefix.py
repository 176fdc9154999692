"""Does a text before the image change what the image values hold?

Each unit is probed under four conditions: no text, the right name of what the probe looks for,
the name of something else, and a neutral text. The three texts have one length in tokens, so that
they move the image by equally many positions; what differs between them is what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from kvfix.data.left_out import Attempts, LeftOut
from kvfix.data.units import UnitSet
from kvfix.eval.recorder import left_out_of
from kvfix.eval.samples import Row, Rows
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import TaskRun, Tick, run_task, sample_path
from kvfix.models import Mlm, Prompt

CONDITIONS = ("none", "correct", "wrong", "neutral")
# (after, before): what is compared. Only the first two are free of length and position.
CONTRASTS = (("correct", "neutral"), ("correct", "wrong"), ("correct", "none"), ("neutral", "none"))
TEMPLATE = "Look for: {}."
NEUTRAL_NAME = "thing"
FILLERS = (".", ",", "!", " .", " ,", " the", "\n")  # tried in turn


class NoContrast(ValueError):
    """Units whose names yield no texts to compare; the message says why."""


class Prefixes(NamedTuple):
    """The texts of one unit, all of `tokens` tokens."""

    correct: str
    wrong: str
    neutral: str
    tokens: int

    def text(self, condition: str) -> str | None:
        """The text of a condition; None under `none`."""
        return None if condition == "none" else getattr(self, condition)


def named(unit: Any) -> str | None:
    """What the probe looks for in a unit: the text it is given, or its class."""
    return getattr(unit, "text", None) or getattr(unit, "category", None)


def prefixes(count: Callable[[str], int], correct: str, others: Sequence[str]) -> Prefixes:
    """Texts of one length for a name.

    Of the other names the one closest in length is the wrong one; the shorter texts are then
    filled up at their front.

    Args:
        count: text -> its number of tokens.
        correct: the right name.
        others: names of other things; at least one differs from `correct`.

    Raises:
        NoContrast: no other name, or no filler that fits in this tokenizer.
    """
    wrong_names = [o for o in dict.fromkeys(others) if o != correct]
    if not wrong_names:
        raise NoContrast(
            f"expected a name other than {correct!r} among the units, found none; take more units"
        )
    length = count(TEMPLATE.format(correct))
    texts = [TEMPLATE.format(n) for n in wrong_names]
    wrong = min(texts, key=lambda t: abs(count(t) - length))
    three = [TEMPLATE.format(correct), wrong, TEMPLATE.format(NEUTRAL_NAME)]
    longest = max(count(t) for t in three)
    filled = [_filled(count, text, longest) for text in three]
    return Prefixes(filled[0], filled[1], filled[2], longest)


def _filled(count: Callable[[str], int], text: str, length: int) -> str:
    missing = length - count(text)
    for filler, space in product(FILLERS, (" ", "")):
        for times in range(missing + 1):
            longer = filler * times + space * (times > 0) + text
            if count(longer) == length:
                return longer
    raise NoContrast(
        f"expected a filler that brings {text!r} from {count(text)} to {length} tokens, found none "
        f"among {FILLERS}"
    )


class PrefixRuns(NamedTuple):
    """A task scored under every condition, and the exact order of one unit's prompt under each."""

    runs: dict[str, TaskRun]
    orders: dict[str, str]
    tokens: tuple[int, int]  # shortest and longest prefix


def run_prefixes(
    units: UnitSet,
    mlm: Mlm,
    folder: Path,
    *,
    kinds: Sequence[str] = ("value",),
    tick: Tick = lambda task: None,
) -> PrefixRuns:
    """Score a task under the four conditions, resumably: `samples/<task>.prefix_<condition>.jsonl`.

    No text before the image is what every other probe reads, too. Where the run has scored these
    units so already, their rows are taken, and a quarter of the work is saved.

    Args:
        units: of a task whose units have a class or a text.
        mlm: the model.
        folder: the run folder.
        kinds: sites to read.
        tick: called after each unit and condition.

    Raises:
        NoContrast: units without a name, all of one name, or none that can be read.
    """
    names = _names(units)
    texts = _texts(mlm, list(names.values()))

    def source_of(condition: str) -> Callable[[Any], MlmSource]:
        return lambda unit: MlmSource(
            mlm, kinds=kinds, position=False, prefix=texts[str(named(unit))].text(condition)
        )

    plain = _scored_plain(units, folder, kinds)
    runs = {} if plain is None else {"none": plain}
    for condition in CONDITIONS:
        if condition not in runs:
            runs[condition] = run_task(
                units, source_of(condition), folder, control=f"prefix_{condition}", tick=tick
            )
        else:
            for _ in units.ids:
                tick(units.task)
    lengths = [p.tokens for p in texts.values()]
    return PrefixRuns(runs, _orders(mlm, units, names, texts), (min(lengths), max(lengths)))


def _names(units: UnitSet) -> dict[int, str]:
    """What each readable unit names, by its index; the others are left out when they are scored."""
    names: dict[int, str] = {}
    attempts = Attempts(len(units))
    for i in range(len(units)):
        name = attempts.do(partial(_named, units, i))
        if isinstance(name, LeftOut):
            continue
        if name is None:
            raise NoContrast(
                f"{units.task}: expected units that name what they show, found none; clips and "
                "groups have no such name"
            )
        names[i] = name
    if not names:
        raise NoContrast(f"{units.task}: expected units that can be read, found none")
    return names


def _named(units: UnitSet, index: int) -> str | None:
    return named(units.load(index))


def _scored_plain(units: UnitSet, folder: Path, kinds: Sequence[str]) -> TaskRun | None:
    """The rows of a run that has scored every unit at these sites without a prefix."""
    path, wanted = sample_path(folder, units), set(units.ids)

    def is_mine(row: Row) -> bool:
        return row["id"] in wanted and row.get("head") is None and row.get("site") in kinds

    left_out = left_out_of(units, path)
    sites: dict[str, set[str]] = {e["id"]: set(kinds) for e in left_out}
    for row in Rows(path, is_mine):
        sites.setdefault(row["id"], set()).add(row["site"])
    whole = {name for name, read in sites.items() if read == set(kinds)}
    return TaskRun(units, Rows(path, is_mine), left_out) if whole == wanted else None


def _texts(mlm: Mlm, names: Sequence[str]) -> dict[str, Prefixes]:
    tokenizer = mlm.processor.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    return {name: prefixes(count, name, names) for name in dict.fromkeys(names)}


def _orders(
    mlm: Mlm, units: UnitSet, names: dict[int, str], texts: dict[str, Prefixes]
) -> dict[str, str]:
    """The rendered prompts of the first unit that can be encoded; empty where none can."""
    attempts = Attempts(len(names), proven=True)  # the prompts are shown, nothing is made of them
    for index, name in names.items():
        found = attempts.do(partial(_rendered, mlm, units, index, texts[name]))
        if not isinstance(found, LeftOut):
            return found
    return {}


def _rendered(mlm: Mlm, units: UnitSet, index: int, texts: Prefixes) -> dict[str, str]:
    """The rendered prompt of a unit's image under each condition, placeholders included."""
    unit = units.load(index)
    image = next(
        getattr(unit, field) for field in ("image", "query", "source") if hasattr(unit, field)
    )
    said = getattr(unit, "text", "Describe the image.")
    return {
        c: mlm.encode([Prompt((image,), said, texts.text(c))]).order_texts[0] for c in CONDITIONS
    }
