"""The rule of leaving out: a unit that fails costs itself, not the run.

Whatever one unit raises while it is read, answered, scored or drawn leaves that unit out, with its
cause on one line. Two kinds of faults end the run instead: what the machine lacks (memory, room on
the disk, open files), and a fault that hits every unit. If the first three units (or all, if there
are fewer) fail alike, by the same exception from the same line, and none has succeeded, that
exception is raised and nothing is left out; a `BadUnit` never counts there, because only a reader
that looked at the unit raises it. The first units and the successes are those of all ranks of a
launch (see `kvfix.ranks`), whoever did them.

A batch in which anything fails is done again unit by unit, to find whose fault it was, and then the
others as one batch: in low precision, which units share a batch moves last bits. Only if the others
fail together and not apart, each keeps what it gave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

from kvfix.data.pictures.read import MACHINE, source_of
from kvfix.data.units import BadUnit
from kvfix.ranks import Jury, OtherRankEnded, everyone, in_order, number
from kvfix.wording import cause, short_path

T = TypeVar("T")
K = TypeVar("K")
L = TypeVar("L")

MOST = 0.05  # share of units that may be left out before a run counts as failed
ALIKE = 3  # units that fail in the same way, none having succeeded, before the run is at fault
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_PICTURES = "pictures: "
_SHOWN = 2  # pictures that a line names
_LONGEST = 600  # characters of a line: names of files, what was expected and what was found


@dataclass(frozen=True)
class LeftOut:
    """What stands in for the result of a unit that was left out."""

    why: str  # one line


def too_many(left_out: int, of: int) -> bool:
    """Whether more than 5 % of the units were left out."""
    return left_out > MOST * of


@dataclass
class Attempts:
    """Does the same for unit after unit and leaves out those that fail (see the top)."""

    total: int  # units that there are to do
    proven: bool = False  # whether units succeeded before, in an earlier start
    jury: Jury | None = None  # of all ranks, where they share the units; then end with `finish`
    _failed: list[Exception] = field(default_factory=list, init=False, repr=False)

    @property
    def settled(self) -> bool:
        """Whether what has been left out so far stays left out."""
        return self.proven or not self._failed

    def do(self, what: Callable[[], T]) -> T | LeftOut:
        """Do one unit; faults that are not the unit's are raised (see the top)."""
        got = self._try(what)
        self._note(got)
        return got

    def finish(self) -> None:
        """Once no rank has a unit left: raises as `do` if all units of all ranks failed alike."""
        if self.jury is None:
            return
        if not self.proven:
            self.jury.hopeless()
        found = everyone(None if self.proven else [str(_place(e)) for e in self._failed])
        places = [place for of_rank in found for place in of_rank or ()]
        enough = 0 < min(ALIKE, self.total) <= len(places) and len(set(places)) == 1
        if None in found or not enough:
            return
        if found.index(next(filter(None, found))) != number():
            raise OtherRankEnded("another rank says why")
        self._raise(len(places))

    def batch(
        self,
        units: Sequence[K],
        load: Callable[[K], L],
        what: Callable[[list[L]], list[T]],
    ) -> list[T | LeftOut]:
        """Read units one by one, and do those that were read together, one result for each, in
        order.
        """
        found: list[Any] = [self._try(partial(load, unit)) for unit in units]
        good = [i for i, unit in enumerate(found) if not isinstance(unit, LeftOut)]
        if not good:
            return found
        together = self._try(lambda: what([found[i] for i in good]), count=len(good) == 1)
        if isinstance(together, LeftOut) and len(good) > 1:
            loaded = {i: found[i] for i in good}
            for i in good:
                found[i] = self.do(lambda unit=loaded[i]: what([unit])[0])  # type: ignore[misc]
            good = [i for i in good if not isinstance(found[i], LeftOut)]
            if len(good) < 2:
                return found
            together = self._try(lambda: what([loaded[i] for i in good]), count=False)
            if isinstance(together, LeftOut):
                return found
        results = [together] * len(good) if isinstance(together, LeftOut) else together
        for i, got in zip(good, results, strict=True):
            found[i] = got
            self._note(got)
        return found

    def _note(self, got: object) -> None:
        if not self.proven and not isinstance(got, LeftOut):
            self.proven = True
            if self.jury is not None:
                self.jury.succeeded()

    def _try(self, what: Callable[[], T], *, count: bool = True) -> T | LeftOut:
        try:
            return what()
        except BadUnit as error:
            return LeftOut(_line(error))
        except Exception as error:
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            if count:
                self._count(error)
            return LeftOut(_line(error))

    def _count(self, error: Exception) -> None:
        """Raise the first fault once it is clear that it is not the units'."""
        if self.proven:
            return
        self._failed.append(error)
        enough = min(ALIKE, self.total)
        if len(self._failed) < enough:
            return
        if len({_place(e) for e in self._failed[:enough]}) > 1:
            return
        if self.jury is not None and self.jury.acquits():
            self.proven = True
        else:
            self._raise(enough)

    def _raise(self, n: int) -> NoReturn:
        some = "first unit" if n == 1 else f"first {n} units"
        self._failed[0].add_note(f"The {some} failed alike, so that none is left out.")
        raise self._failed[0]


def attempted(
    total: int, what: Callable[[int], T], tick: Callable[[int], None] = lambda i: None
) -> list[T | LeftOut]:
    """Do units by their number, each on one rank of the launch; all results on every rank.

    Args:
        total: how many units there are.
        what: does one; raises as `Attempts.do`.
        tick: called with each number once it is done.
    """
    attempts = Attempts(total, jury=Jury())
    return in_order(total, lambda i: attempts.do(partial(what, i)), tick, then=attempts.finish)


@contextmanager
def naming(images: Iterable[Any]) -> Iterator[None]:
    """Have the line of a unit that fails inside name the files of its images."""
    try:
        yield
    except Exception as error:
        names = list(dict.fromkeys(name for i in images if (name := source_of(i)) is not None))
        if names and not any(n.startswith(_PICTURES) for n in getattr(error, "__notes__", ())):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            error.add_note(f"{_PICTURES}{', '.join(names[:_SHOWN])}{more}")
        raise


def machine_fault(error: Exception) -> Exception | None:
    """The error to raise where the machine is at fault and not a unit; None where a unit may be."""
    text = cause(error)
    kind = type(error)
    of_torch = kind.__module__.partition(".")[0] == "torch"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text.lower() for words in _MEMORY)
    ):
        return MemoryError(
            f"expected memory enough for every unit, found {kind.__name__}: {text}; use a smaller "
            "batch or a larger machine, the same command goes on where it stopped"
        )
    if of_torch and kind.__name__ == "AcceleratorError":
        return error  # the device takes no more work from this process
    if isinstance(error, ConnectionError):
        return error  # of a server that answers every unit
    return error if isinstance(error, OSError) and error.errno in MACHINE else None


def _line(error: Exception) -> str:
    said = cause(error)
    if isinstance(error, BadUnit):
        said = short_path(" ".join(str(error).split()), _LONGEST)
    if not isinstance(error, ValueError):
        said = f"{type(error).__name__}: {said}"
    notes = [n.removeprefix(_PICTURES) for n in getattr(error, "__notes__", ()) if _PICTURES in n]
    return f"{notes[0]}: {said}" if notes and notes[0] not in said else said


def _place(error: Exception) -> tuple[type, str, int]:
    """The kind of an exception, and the line that raised it."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = ("", 0) if at is None else (at.tb_frame.f_code.co_filename, at.tb_lineno)
    return type(error), *where
