"""One start of a training in its run folder, and the steps that a recipe's page takes.

`checkpoints/<run>/` then holds `adapter_model.safetensors` and `adapter_config.json` (plain PEFT
loads them), the heads, `config.yaml` as resolved, `training.json`, `log.jsonl`, a model card, and
the last checkpoints to resume from.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from kvfix.config import dump_config
from kvfix.data.training.examples import Examples
from kvfix.mlm.load import Mlm
from kvfix.repair.key_choice import ChosenKeys
from kvfix.repair.lora import LoraReport, attach
from kvfix.repair.module import Repair
from kvfix.repair.train.card import begin_record, end_record, finish, told, write_record
from kvfix.repair.train.identity import MEND, Identity, adapter_fields, check_same, fields_of
from kvfix.repair.train.launch import plan_launch
from kvfix.repair.train.recipe import Recipe, keys_to_suppress, load_model, read_examples
from kvfix.repair.train.resume import CONFIG, Work, look
from kvfix.repair.train.saves import TRAINED_FILES, publish
from kvfix.repair.train.session import run_steps
from kvfix.repair.train.shared_memory import SHARED, sweep
from kvfix.repair.train.show import Monitor
from kvfix.report.export.trackers import need
from kvfix.runs.atomic import remove_leftovers, write_text
from kvfix.runs.lock import locked
from kvfix.shipped import default_out, presets_dir


def in_run_folder(name: str) -> Callable[[Callable[[Training], None]], Callable[..., Path]]:
    """Make the steps of a page, which take an open `Training`, a function of the settings.

    The page's function then takes the `Recipe` and, as keyword `command`, the words that were
    typed; it returns the run folder, which is called `name` where the config names none. A finished
    training is not begun again.
    """

    def around(steps: Callable[[Training], None]) -> Callable[..., Path]:
        @wraps(steps)
        def train(recipe: Recipe, *, command: Sequence[str]) -> Path:
            with Training(recipe, name, command=command) as training:
                if not training.done:
                    steps(training)
            return training.out

        return train

    return around


class Training(AbstractContextManager):
    """One rank's part in it; inside the `with` block no other process can train in the folder.

    `done`: nothing is left to do, since an earlier start took the last step.
    """

    def __init__(self, recipe: Recipe, name: str, *, command: Sequence[str]):
        """Look at the folder; nothing is touched before `with`. `command` is for messages and the
        card.
        """
        need(recipe.report_to)
        self.recipe, self.command, self._line = recipe, command, shlex.join(command)
        self.launch = plan_launch(recipe.zero, presets_dir())
        self.out = Path(recipe.out) if recipe.out else default_out(name)
        self._going = look(self.out, recipe, world=self.launch.world, command=self._line)
        self.done = self._going.finished or (
            self._going.last is not None and self._going.step >= recipe.steps
        )
        self._open = ExitStack()

    def __enter__(self) -> Training:
        going = self._going
        with ExitStack() as stack:
            if self._main:
                stack.enter_context(locked(self.out, command=self._line, mend=MEND))
            self._monitor = stack.enter_context(
                Monitor(self.recipe.steps, self.out, main=self._main)
            )
            if self._main and self.launch.deepspeed is not None and (freed := sweep()):
                self.tell([f"freed {freed / 2**20:.0f} MiB in {SHARED} that ended trainings left"])
            self.tell(
                f"{checkpoint} does not count: {why}" for checkpoint, why in going.torn.items()
            )
            if going.finished:
                self.tell([f"{self.out}: finished after step {going.step}; nothing is left to do"])
            elif self.done:  # a kill between the last checkpoint and the end
                self._finish_from_checkpoint()
            elif self.recipe.threads:
                torch.set_num_threads(self.recipe.threads)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def tell(self, lines: Iterable[str]) -> None:
        """Print lines, on rank 0."""
        for line in lines:
            self._monitor.say(line)

    def read_examples(self) -> Examples:
        """What is learned from, without what cannot be read."""
        examples = read_examples(self.recipe, self.launch)
        self.tell(examples.said())
        return examples

    def load_model(self) -> Mlm:
        """The base model, where this rank computes."""
        return load_model(self.recipe, self.launch)

    def choose_keys(self, mlm: Mlm, examples: Examples) -> ChosenKeys | None:
        """The keys that some loss suppresses, alike on every rank; None where no loss does."""
        keys = keys_to_suppress(self.recipe, mlm, examples)
        self.tell(keys.said() if keys else [])
        return keys

    def attach(self, mlm: Mlm) -> tuple[Mlm, LoraReport]:
        """The model with a fresh adapter."""
        mlm, report = attach(mlm, self.recipe.lora, zero=self.launch.stage, seed=self.recipe.seed)
        self.tell(report.lines())
        return mlm, report

    def fit(self, repair: Repair, report: LoraReport, examples: Examples) -> None:
        """Take the steps, with checkpoints on the way; write the adapter, its record and its card.

        A ValueError says what stands against it; Interrupted is Ctrl-C or SIGTERM in the midst of
        the steps, with a checkpoint written.
        """
        recipe, going, out, monitor = self.recipe, self._going, self.out, self._monitor
        identity = Identity(self._known(examples), repair.mlm)
        if going.last is not None and self._main:
            check_same(out, going.fingerprint, identity.fields())
        work = Work(
            *(recipe, self.launch, repair, report, examples, out),
            *(going, monitor, identity, self.command),
        )
        record = begin_record(work)

        def begin() -> None:
            if self._main:
                remove_leftovers(out, command=self._line)
                write_record(out, record)
                write_text(out / CONFIG, dump_config(recipe))
                self.tell(told(work, record))
                monitor.begin(None if going.last is None else going.step)

        def end(how: str, seconds: float) -> None:
            if self._main:
                write_record(out, end_record(record, how=how, seconds=seconds))

        ended = run_steps(work, begin=begin, end=end)
        if ended.step >= recipe.steps and self._main:
            record = end_record(record, how="finished", seconds=ended.seconds)
            if not identity.ready:
                self.tell(["hashing the base model's weights for the record ..."])
            finish(recipe, out, record, identity.fields())
            self.tell([f"wrote {out}"])

    @property
    def _main(self) -> bool:
        return self.launch.rank == 0

    def _known(self, examples: Examples) -> dict[str, Any]:
        """What of the fingerprint is known without reading anything big."""
        deepspeed = json.dumps(self.launch.deepspeed, sort_keys=True)
        return {
            **fields_of(self.recipe),
            "ranks": self.launch.world,
            "data.sha256": examples.sha256,
            "zero.config": hashlib.sha256(deepspeed.encode()).hexdigest(),
            **adapter_fields(self.recipe.adapter),
        }

    def _finish_from_checkpoint(self) -> None:
        last = self._going.last
        assert last is not None
        if self._main:
            publish([last / n for n in TRAINED_FILES if (last / n).is_file()], self.out)
            finish(self.recipe, self.out, dict(self._going.record), self._going.fingerprint)
        self.tell([f"wrote {self.out} from {last}"])
