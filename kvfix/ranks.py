"""The ranks of one launch, as a run sees them: who does which unit, and what all must agree on.

Every rank runs the same code over the same units. `dealt` gives each unit to one of them, `agreed`
has the first rank decide for all, and `in_order` brings together what each found. Without a
launcher the one process is the first rank, and all of this does the plain thing.

Ranks meet over gloo wherever their models are, since what they exchange is small. Meetings must
come in the same order on every rank, so that none of them stands behind what only one rank knows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kvfix.launchers import MEETING, local_rank, rank

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # for what one rank does while the others wait
_FAILED = "failed"  # counts the ranks that failed
_POLL = 0.05  # seconds
_FAREWELL = 60.0  # seconds that rank 0 waits for the others to read
_stores: list[Any] = []  # a store lives as long as its process: other ranks read it later


@dataclass
class _Team:
    """The ranks of this launch while a run is going on."""

    number: int
    of: int
    store: Any
    meetings: int = 0  # that needed a key in the store so far

    def key(self, what: str) -> str:
        """A name in the store that no other meeting has."""
        self.meetings += 1
        return f"{what} {self.meetings}"


_team: _Team | None = None
_told = False  # whether this rank's error is the one to show


class OtherRankEnded(RuntimeError):
    """Another rank failed, and has said why."""


def number() -> int:
    """Which rank this process is, from 0."""
    return 0 if _team is None else _team.number


def ranks() -> int:
    """How many ranks there are."""
    return 1 if _team is None else _team.of


def is_first() -> bool:
    """Whether this is the rank that decides, writes the record and shows how far the run is."""
    return number() == 0


def speaks() -> bool:
    """Whether this process may write on the terminal why it ends: one of a launch does."""
    found = rank()
    return found is None or found.number == 0 or _told


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks of this launch, if there are any, until the block ends.

    When a rank fails, all end: the first to fail raises its own error, the others SystemExit.
    """
    global _team
    found = rank()
    if found is None or _team is not None:
        yield
        return
    if found.variable != MEETING:
        raise ValueError(
            f"{found.variable} says that {found.of} processes were started, and nothing says where "
            "they meet; start them by torchrun, accelerate or deepspeed"
        )
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    store = _store(found.number, found.of)
    dist.init_process_group(
        "gloo", store=store, rank=found.number, world_size=found.of, timeout=PATIENCE
    )
    _team = _Team(found.number, found.of, store)
    try:
        yield
        everyone(None)  # the store may live in the first rank
    except BaseException as error:
        _end(_team, error)
    finally:
        _team = None
        dist.destroy_process_group()


def _end(team: _Team, error: BaseException) -> NoReturn:
    """Tell the other ranks, or end silently if another has told."""
    global _told
    try:
        _told = not isinstance(error, OtherRankEnded) and team.store.add(_FAILED, 1) == 1
    except RuntimeError:  # the rank that held the store is gone
        _told = False
    if not _told:
        raise SystemExit(1) from error
    # Another was killed, and could not say why.
    if isinstance(error, RuntimeError) and "gloo" in str(error):
        raise OtherRankEnded(
            f"expected {team.of} ranks until the end, found that another has died; the same "
            "command goes on where they stopped"
        ) from error
    error.add_note(f"(rank {team.number} of {team.of})")
    raise error


def agreed(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank, on every rank; the others do not call it."""
    if _team is None:
        return make()
    from torch import distributed as dist

    said = [make() if is_first() else None]
    dist.broadcast_object_list(said, src=0)
    return said[0]  # type: ignore[return-value]


def agreed_apart(make: Callable[[], Any], number: int, of: int) -> Any:
    """What `make` returns on rank 0, or as a ValueError why it failed: on every rank, through JSON.

    For ranks that no run has joined: those of a training, which form their group later.
    """
    if of == 1:
        return make()
    store = _store(number, of)
    if number != 0:
        said = json.loads(store.get("agreed"))
        store.add("read", 1)
        if "error" in said:
            raise ValueError(said["error"])
        return said["value"]
    said = {"error": "rank 0 ended; its message is above"}
    try:
        said = {"value": make()}
    except (ValueError, OSError) as error:
        said = {"error": str(error)}
        raise
    finally:
        store.set("agreed", json.dumps(said))
        # Rank 0 keeps the store: it may not end, for whatever comes next, before all have read.
        end = time.monotonic() + _FAREWELL
        while store.add("read", 0) < of - 1 and time.monotonic() < end:
            time.sleep(_POLL)
    return said["value"]


def _store(number: int, of: int) -> Any:
    """Where ranks meet, a new one each time; its port serves their process groups as well."""
    import torch.distributed as dist

    meeting = dist.rendezvous("env://", number, of, timeout=PATIENCE)
    store = dist.PrefixStore(f"kvfix {len(_stores)}", next(meeting)[0])
    store.set_timeout(PATIENCE)
    _stores.append(store)
    return store


def everyone(mine: T) -> list[T]:
    """What each rank has, in the order of ranks, on every rank."""
    if _team is None:
        return [mine]
    from torch import distributed as dist

    found: list[Any] = [None] * _team.of
    dist.all_gather_object(found, mine)
    return found


def check_alike(what: str, mine: object) -> None:
    """Refuse to share units among ranks that have read or run different things.

    Raises:
        ValueError: on every rank, if one has something else.
    """
    found = everyone(mine)
    for other, theirs in enumerate(found):
        if theirs != found[0]:
            raise ValueError(
                f"expected the same {what} on every rank, found others on rank {other} than on "
                "rank 0; what ranks read must be the same files"
            )


def summed(x: Tensor) -> Tensor:
    """The sum of every rank's tensor, on every rank and equal to the last bit there."""
    if _team is None:
        return x
    import torch
    from torch import distributed as dist

    # Contiguous: ranks may have laid it out differently.
    total = x.cpu().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(x.device)


def dealt(total: int | None, tick: Callable[[int], None] = lambda i: None) -> Iterator[int]:
    """The indices of what this rank is to do, in their order; each goes to whoever is free.

    Args:
        total: how many there are; None if that is found out on the way, by all ranks alike.
        tick: called on every rank with each index once it was dealt to another or is done here.
    """
    if _team is None:
        for i in count() if total is None else range(total):
            yield i
            tick(i)
        return
    key, told = _team.key("dealt"), 0
    while (i := _next(_team, key)) < (i + 1 if total is None else total):
        yield i
        for k in range(told, i + 1):
            tick(k)
        told = i + 1
    for k in range(told, total or 0):
        tick(k)


def in_order(
    total: int,
    do: Callable[[int], T],
    tick: Callable[[int], None] = lambda i: None,
    *,
    then: Callable[[], None] = lambda: None,
) -> list[T]:
    """`do(i)` for each index, on one rank each; all results in order on every rank.

    `then` is called when this rank has no more to do, before it waits for the others: a jury has to
    hear from a rank that is done, or the rank that asks it waits for ever.
    """
    mine = {i: do(i) for i in dealt(total, tick)}
    then()
    found = {i: got for of_rank in everyone(mine) for i, got in of_rank.items()}
    return [found[i] for i in range(total)]


class Jury:
    """Whether any rank has succeeded at what all of them try; one for each round of units.

    A rank whose first units all fail cannot know alone whether the units are bad or the run is.
    """

    def __init__(self) -> None:
        self._key = "" if _team is None else _team.key("jury")
        self._said = False

    def succeeded(self) -> None:
        """Tell the others that a unit came through here."""
        self._say("proven")

    def hopeless(self) -> None:
        """Tell the others that nothing came through here, and that this rank has no more units."""
        self._say("hopeless")

    def acquits(self) -> bool:
        """Whether a unit came through on another rank; waits until that is known.

        Raises:
            OtherRankEnded: another rank failed meanwhile.
        """
        if _team is None:
            return False
        self.hopeless()
        while True:
            if _team.store.add(f"{self._key} proven", 0):
                return True
            if _team.store.add(f"{self._key} hopeless", 0) == _team.of:
                return False
            _check(_team)
            time.sleep(_POLL)

    def _say(self, what: str) -> None:
        if _team is not None and not self._said:
            self._said = True
            _team.store.add(f"{self._key} {what}", 1)


def _next(team: _Team, key: str) -> int:
    _check(team)
    return team.store.add(key, 1) - 1


def _check(team: _Team) -> None:
    if team.store.add(_FAILED, 0):
        raise OtherRankEnded("another rank has failed")
