"""What a run says in words, and the numbers it says it from, apart: pages render both as they like.

`text` is the sentence of the terminal and of run.json, `words` the same below a heading that names
the subject already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# A bootstrap interval never leaves the range of its clusters, so that a few of one sign always
# exclude 0. Six of one sign are the fewest that a two-sided sign test finds at 5 % (2 / 2^6).
FEWEST_CLUSTERS = 6


class Place(NamedTuple):
    """Where two runs are compared: in a table, and in a sentence."""

    name: str
    where: str


PLACES = {
    "predictions": Place("predictions", "in the predictions"),
    "vision": Place("vision encoder", "in the vision encoder"),
    "projector": Place("projector", "after the projector"),
    "best": Place("best value layer", "at value layer {layer}, the best of BEFORE"),
    "last": Place("last value layer", "at the last value layer, {layer}"),
}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and what it is of; None where it could not be computed."""

    value: float | None
    ci: tuple[float, float] | None
    n: int
    clusters: int = 0

    @staticmethod
    def of(got: Any, at: int = 0) -> Estimate:
        """Number `at` of a `kvfix.eval.stats.bootstrap.Interval`."""
        value, low, high = (float(x[at]) for x in (got.value_S, got.low_S, got.high_S))
        ci = None if math.isnan(low) else (low, high)
        number = None if math.isnan(value) else value
        return Estimate(number, ci, int(got.n_S[at]), int(got.clusters_S[at]))

    def to_json(self) -> dict[str, Any]:
        """As results hold it."""
        ci = None if self.ci is None else list(self.ci)
        return {"value": self.value, "ci": ci, "n": self.n, "clusters": self.clusters}

    @property
    def enough(self) -> bool:
        """Whether there are clusters enough to tell a difference from none."""
        return self.clusters >= FEWEST_CLUSTERS

    @property
    def clear(self) -> bool:
        """Whether this, a difference, is one for sure."""
        return self.enough and excludes_0(self.ci)

    def doubt(self, unclear: str = "the interval holds 0: no clear difference") -> str:
        """What a sentence about a difference adds where it is not clear."""
        if not self.enough:
            return " (too few clusters to tell)"
        return "" if self.clear else f" ({unclear})"

    def said(self, *, signed: bool = False, n: bool = True) -> str:
        """`0.123 [0.100, 0.150] (n = 4)`."""
        form = "+.3f" if signed else ".3f"
        span = "no interval" if self.ci is None else ", ".join(f"{e:{form}}" for e in self.ci)
        value = math.nan if self.value is None else self.value
        return f"{value:{form}} [{span}]" + (f" (n = {self.n})" if n else "")


def excludes_0(ci: Sequence[float] | None) -> bool:
    """Whether an interval is on one side of 0."""
    return ci is not None and (ci[0] > 0 or ci[1] < 0)


def title(task: str, dataset: str | None) -> str:
    """`Semantic correspondence (spair71k)`; scenes are not named."""
    name = task.replace("_", " ").capitalize()
    return name if dataset in (None, "scenes") else f"{name} ({dataset})"


@dataclass(frozen=True)
class Finding:
    """One sentence."""

    id: str  # its kind, such as `flow.peak`
    words: str  # what is said of the subject
    estimate: Estimate  # the number that decides, and what it is of
    task: str  # what was measured
    dataset: str | None  # on what
    subject: str = ""  # what the sentence is about; empty where the words name it
    clear: bool | None = None  # whether it is so for sure; None where nothing was tested
    # The words round shares to percent, so that the numbers are worth showing beside.
    percent: bool = False
    # Further entries of run.json, such as the layer.
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.subject}: {self.words}" if self.subject else self.words

    def to_json(self) -> dict[str, Any]:
        """As run.json holds it."""
        e = self.estimate
        out: dict[str, Any] = {"id": self.id, "text": self.text, "percent": self.percent}
        if self.subject:
            out |= {"subject": self.subject, "words": self.words}
        out |= {"task": self.task, "dataset": self.dataset, "value": e.value}
        out |= {"ci": None if e.ci is None else list(e.ci), "n": e.n, **self.more}
        return out if self.clear is None else out | {"clear": self.clear}

    @property
    def numbers(self) -> str:
        """`0.100 [0.050, 0.150], n = 30`; empty where the words give them to three decimals."""
        value, ci = self.estimate.value, self.estimate.ci
        if not self.percent or value is None:
            return ""
        span = "" if ci is None else f" [{ci[0]:.3f}, {ci[1]:.3f}]"
        return f"{value:.3f}{span}" + (f", n = {self.estimate.n}" if self.estimate.n else "")

    @staticmethod
    def from_json(item: Mapping[str, Any]) -> Finding:
        """A finding of a run.json, which anybody may have written."""
        known = {"id", "text", "subject", "words", "percent", "task", "dataset"}
        known |= {"value", "ci", "n", "clear"}
        dataset = item.get("dataset")
        return Finding(
            str(item.get("id") or ""),
            str(item.get("words") or item.get("text") or ""),
            Estimate(
                number(item.get("value")), ends(item.get("ci")), int(number(item.get("n")) or 0)
            ),
            str(item.get("task") or ""),
            None if dataset is None else str(dataset),
            str(item.get("subject") or ""),
            clear=item["clear"] if isinstance(item.get("clear"), bool) else None,
            percent=item.get("percent", True) is True,
            more={key: value for key, value in item.items() if key not in known},
        )


def number(value: Any) -> float | None:
    """A finite float, else None (JSON null, NaN, infinity, anything that is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(ci: Any) -> tuple[float | None, float | None]:
    """(low, high) of a JSON interval; (None, None) where it is null or not two finite numbers."""
    if not isinstance(ci, list | tuple) or len(ci) != 2:
        return None, None
    low, high = number(ci[0]), number(ci[1])
    return (low, high) if low is not None and high is not None else (None, None)


def ends(ci: Any) -> tuple[float, float] | None:
    """The same, or None."""
    low, high = interval(ci)
    return None if low is None or high is None else (low, high)
