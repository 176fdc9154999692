"""When a training saves and when it stops: decided where a step ends, alike on all ranks."""

from __future__ import annotations

import signal
import time
from typing import Any

from transformers import TrainerCallback

from kvfix.repair.train.guard import Guard
from kvfix.repair.train.stops import Stops


class Flow(TrainerCallback):
    """Reads the guard after each step, and turns wishes and clocks into saves and stops.

    Checkpoints come `every` so many steps and minutes; 0 is none by it. `lost` says why examples of
    this rank could not be read, which stops the training.
    """

    def __init__(self, stops: Stops, *, every: int, minutes: float, stop_at: int, world: int):
        self.stops = stops
        self.lost: list[str] = []
        self._every, self._minutes, self._stop_at, self._world = every, minutes, stop_at, world
        self._saved = time.monotonic()
        self._any = False

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is too long ago, by this rank's clock."""
        return self._minutes > 0 and time.monotonic() - self._saved > 60 * self._minutes

    @property
    def stopping(self) -> bool:
        """Whether this rank wants to stop."""
        return self.stops.signal is not None or bool(self.lost)

    def attach(self, guard: Guard) -> None:
        """Of the trainer, which is made later."""
        self._guard = guard

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed trainer takes the rhythm of its log from the checkpoint."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises `Diverged` on every rank."""
        asked = self._guard.read()
        step, last = state.global_step, state.global_step >= state.max_steps
        alone = self._world == 1 and self.stopping  # nobody else to agree with
        if asked.stop and not self.stopping:
            self.stops.signal = signal.SIGTERM  # another rank stops: all end with a code of one
        if asked.stop or alone or step == self._stop_at:
            control.should_training_stop = control.should_save = True
        by_steps = self._every > 0 and step % self._every == 0
        if asked.save or by_steps or (last and (self._every > 0 or self._any)):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts anew."""
        self._saved, self._any = time.monotonic(), True
