"""What one rank finds out for all of them, before any of them has loaded a model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from kvfix.repair.train.launch import Launch

_PATIENCE = timedelta(days=2)  # for what rank 0 does alone
_FAREWELL = 60.0  # seconds that rank 0 waits for the others to read
_stores: list[Any] = []  # a store lives as long as its process: other ranks read it later


def agreed(make: Callable[[], Any], launch: Launch) -> Any:
    """What `make` returns on rank 0, on every rank.

    Args:
        make: Called on rank 0 alone; what it returns can be written as JSON.
        launch: How this rank was started.

    Raises:
        ValueError: What `make` raised, on every rank.
    """
    if launch.world == 1:
        return make()
    store = _store(launch)
    key = f"agreed {len(_stores)}"
    if launch.rank != 0:
        said = json.loads(store.get(key))
        store.add(f"{key} read", 1)
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
        store.set(key, json.dumps(said))
        # Rank 0 keeps the store: it may not end, for whatever comes next, before all have read.
        end = time.monotonic() + _FAREWELL
        while store.add(f"{key} read", 0) < launch.world - 1 and time.monotonic() < end:
            time.sleep(0.05)
    return said["value"]


def _store(launch: Launch) -> Any:
    """Where the process group will meet later, too: its port serves several stores."""
    import torch.distributed as dist

    meeting = dist.rendezvous("env://", launch.rank, launch.world, timeout=_PATIENCE)
    store = dist.PrefixStore("kvfix", next(meeting)[0])
    store.set_timeout(_PATIENCE)
    _stores.append(store)
    return store
