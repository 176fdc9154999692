"""What a row compares, how its sides take turns, and what it says of itself."""

from __future__ import annotations

import cProfile
import pstats
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

Way = Callable[[], float | None]  # one that runs elsewhere returns its own CPU-seconds
SHOWN = 12  # functions of a profile


class Asked(NamedTuple):
    """How much is measured: `tiny` is the smallest of everything, without tools from PyPI."""

    rounds: int
    tiny: bool = False


class Goal(NamedTuple):
    """A bound of a ratio: `theirs / ours`, at least; or `ours / theirs`, at most."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}x"

    def ratio(self, ours: float, theirs: float) -> float:
        """The ratio that the bound is of."""
        return ours / theirs if self.at_most else theirs / ours

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio keeps the bound."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


class Contest(NamedTuple):
    """Ways to do the same work: kvfix's, and what it is measured beside."""

    name: str
    kvfix: Way
    beside: Mapping[str, Way]
    goals: Mapping[str, Goal]  # by way
    rounds: int
    agreement: Callable[[str], str] = lambda _: ""  # of the answers, with those of a way
    missing: tuple[str, ...] = ()  # tools that cannot be had, with the reason
    why: Mapping[str, str] = {}  # why a goal is missed, by way


class Line(NamedTuple):
    """One line of the table, in words."""

    name: str
    ours: str
    beside: str = ""
    theirs: str = ""
    ratio: str = ""
    spread: str = ""
    goal: str = ""
    memory: str = ""
    agreement: str = ""
    why: str = ""  # a note under the table


def milliseconds(seconds: float) -> str:
    """A time as the table shows it."""
    return f"{1e3 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def measured(contest: Contest) -> Iterator[Line]:
    """Let the ways take turns, and compare each with kvfix."""
    seconds = take_turns({"kvfix": contest.kvfix, **contest.beside}, contest.rounds)
    ours = seconds.pop("kvfix")
    for way, theirs in seconds.items():
        yield compared_line(
            contest.name,
            ours,
            way,
            theirs,
            contest.goals[way],
            memory=memory(getattr(contest.beside[way], "memory_mib", None)),
            agreement=contest.agreement(way),
            why=contest.why.get(way, ""),
        )
    for reason in contest.missing:
        yield Line(contest.name, milliseconds(statistics.median(ours)), reason)


def compared_line(
    name: str,
    ours: Sequence[float],
    beside: str,
    theirs: Sequence[float],
    goal: Goal,
    *,
    shown: Callable[[float], str] = milliseconds,
    memory: str = "",
    agreement: str = "",
    why: str = "",
) -> Line:
    """A line from the figures of both sides by round: medians, and ratios within rounds.

    `why` becomes a note where the goal is missed.
    """
    ratios = [goal.ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    met = goal.is_met(ratio)
    return Line(
        name,
        shown(statistics.median(ours)),
        beside,
        shown(statistics.median(theirs)),
        f"{ratio:.2f}x",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        str(goal) if met else f"{goal}: missed",
        memory,
        agreement,
        "" if met else why,
    )


def take_turns(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of each way in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            elsewhere = way()
            spent = time.process_time() - start if elsewhere is None else elsewhere
            if number:
                seconds[name].append(spent)
    return seconds


def profiled(contest: Contest) -> str:
    """Which functions each side spends its time in; a tool profiles its own process."""
    found = []
    for name, way in {"kvfix": contest.kvfix, **contest.beside}.items():
        way()
        told = way.profile() if isinstance(way, Elsewhere) else shares(way)
        found.append(f"{contest.name}, {name}: {told}")
    return "\n".join(found)


@runtime_checkable
class Elsewhere(Protocol):
    """A way that runs in another process."""

    def profile(self) -> str:
        """Run once more, and say as `shares` does what that took."""


def shares(way: Callable[[], object]) -> str:
    """CPU-time of one run, and the functions that most of it was spent in, by their own time."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(way)
    stats = pstats.Stats(profile).get_stats_profile()
    parts = sorted(stats.func_profiles.items(), key=lambda item: -item[1].tottime)
    lines = [f"{milliseconds(stats.total_tt)} of CPU under the profiler"]
    for name, part in parts[:SHOWN]:
        share = part.tottime / (stats.total_tt or 1.0)  # 0 where nothing is to be timed
        lines.append(f"  {share:5.1%}  {part.ncalls:>9} calls  {name}")
    return "\n".join(lines)


def memory(theirs_mib: float | None = None) -> str:
    """The largest resident set of this process so far, and of a tool's own process."""
    return f"{resident_mib():.0f} MiB" + (f", {theirs_mib:.0f}" if theirs_mib else "")


def resident_mib() -> float:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
