"""A thin `transformers.Trainer` around `Repair`.

What it adds: loss terms pooled over ranks and micro-batches, a learning rate per part, checkpoints
that hold the adapter and what is trained beside it (never the frozen base) and are whole or not
there, a guard that stops at the first number that is not finite, a gradient probe in the first
step, and a log of every term.

Shapes: T loss terms, F flags of the guard.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import PrinterCallback

from kvfix import adapters
from kvfix.repair.batch import Batch, Collator
from kvfix.repair.gradients import GradientProbe
from kvfix.repair.lora import parameter_groups
from kvfix.repair.module import Repair
from kvfix.repair.readable import Readable, collate
from kvfix.repair.terms.heads import check_trained
from kvfix.repair.train.flow import Flow
from kvfix.repair.train.guard import Guard
from kvfix.repair.train.resume import Work
from kvfix.repair.train.saves import BESIDE, PREFIX, rotate, together
from kvfix.repair.train.speed import Clock
from kvfix.repair.train.stops import without_signals


class RepairTrainer(Trainer):
    """Trains what is trainable in a `Repair`."""

    def __init__(self, work: Work, args: TrainingArguments, collator: Collator, flow: Flow):
        repair, recipe, going = work.repair, work.recipe, work.going
        super().__init__(
            model=repair,
            args=args,
            train_dataset=Readable(work.examples),
            data_collator=collate(collator),
        )
        self.remove_callback(PrinterCallback)
        trained = [p for p in repair.parameters() if p.requires_grad]
        self.guard = Guard(repair.names, trained)
        self.flow, self._work = flow, work
        self._torn = tuple(going.torn)  # removed when there is a new checkpoint
        flow.attach(self.guard)
        self.add_callback(flow)
        # The loss is divided by what the step's micro-batches hold together, in `Repair`.
        self.model_accepts_loss_kwargs = True
        self.repair = repair
        self._amount_T = torch.zeros(len(repair.names))
        self._left = 1  # micro-batches of the step that are still to come
        # On the device until it is logged: reading it in every micro-batch would wait for it.
        self._sums_T2 = torch.zeros(len(repair.names), 2, device=args.device)
        self._clock = Clock(sum(_numel(p) for p in repair.mlm.lm.parameters()), repair.mlm.device)
        # What goes on has its first step behind it.
        fresh = going.last is None and not recipe.adapter
        self.probe = GradientProbe(repair) if fresh else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a group per part."""
        if getattr(self, "optimizer", None) is None:
            report, rates = self._work.report, self._work.recipe.rates
            groups = parameter_groups(self.repair.mlm, report, rates, heads=self.repair.heads)
            check_trained(self.repair.beside(), groups)
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """Its workers leave signals to this process, which asks them to end when it does."""
        loader: Any = super().get_train_dataloader()
        inner = loader.base_dataloader  # of accelerate's wrapper, which starts the workers
        inner.worker_init_fn = partial(without_signals, inner.worker_init_fn)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Batch]], Tensor]:
        """A step's micro-batches and what all ranks' hold; what the guard found goes along."""
        start = time.perf_counter()
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [sample["batch"] for sample in samples]
        self.flow.lost += [why for sample in samples for why in sample.pop("lost")]
        found = torch.tensor([self.repair.amounts(batch) for batch in batches]).sum(0)
        flags_F = self.guard.flags(
            device, stop=self.flow.stopping, save=self._main and self.flow.due
        )
        both = self._summed(torch.cat([found.to(device), flags_F]))
        self._amount_T = both[: len(found)]
        self.guard.send(both[len(found) :])
        self.guard.begin()
        self._left = max(len(batches), 1)
        self._clock.waited += time.perf_counter() - start
        self._clock.images += sum(batch.n_images for batch in batches)
        self._clock.tokens += sum(batch.n_tokens for batch in batches)
        return samples, torch.ones(())

    def compute_loss(self, model: Any, inputs: dict[str, Batch], **_: Any) -> Tensor:  # type: ignore[override]
        """Loss of one micro-batch; its terms go to the log."""
        mlm = self.repair.mlm
        loss, table_T2 = model(
            inputs["batch"].moved(mlm.device, mlm.dtype),
            self.state.global_step,
            self._amount_T,
            float(self.args.world_size),
        )
        self._sums_T2 += table_T2
        self.guard.add(table_T2)
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; after the last one of a step, what the step found is noted."""
        loss = super().training_step(*args, **kwargs)
        self._left -= 1
        if self._left == 0:
            rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
            self.guard.end(self.state.global_step + 1, rates)
        if self.probe is not None and self._left == 0:  # one micro-batch may hold no answer
            self.probe.pool(self._largest)
            self.probe.check()
            self.probe.close()
            self.probe = None
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The guard looks at it, too; with fp16, DeepSpeed skips steps that overflow by itself."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = self.is_deepspeed_enabled and self.model_wrapped.fp16_enabled()
        self.guard.norm(None if scaled else norm)
        return norm

    def check_finite(self) -> None:
        """Before anything is written: wait for the last step; every rank calls this, and may raise
        Diverged.
        """
        self.guard.send(self._summed(self.guard.flags(self.args.device)))
        self.guard.read()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every term, all ranks' mean, and how fast it went; every rank calls this."""
        if "loss" in logs:
            total_T, weight_T = self._summed(self._sums_T2).cpu().unbind(1)
            for name, total, weight in zip(self.repair.names, total_T, weight_T, strict=True):
                if weight > 0:  # nothing of the kind since the last line: no value
                    logs[f"loss_{name}"] = float(total / weight)
            self._sums_T2.zero_()
            counts = torch.tensor([self._clock.images, self._clock.tokens * 1.0])
            images, tokens = self._summed(counts.to(self.args.device)).tolist()
            logs.update(self._clock.read(images, tokens, self.args.world_size))
            if logs.get("grad_norm", 0.0) is None:
                del logs["grad_norm"]  # DeepSpeed keeps none at stage 0
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self._work.monitor.line({**logs, "step": self.state.global_step})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Whole or not at all, then older ones go."""
        self.check_finite()
        target = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        command = shlex.join(self._work.command)
        with together(target, main=self._main, wait=self._wait, command=command) as folder:
            self.store_flos()
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            if self._main:
                self._work.identity.write(folder)
                self.state.save_to_json(str(folder / "trainer_state.json"))
        if self._main:
            rotate(target, keep=self._work.recipe.keep, torn=self._torn)
            self._torn = ()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter as PEFT writes it, and the heads; gathered from all ranks first."""
        out = Path(output_dir or self.args.output_dir)
        trained = [p for p in self.repair.parameters() if p.requires_grad]
        with _gathered(trained):
            if self.args.should_save:
                out.mkdir(parents=True, exist_ok=True)
                self.repair.model.save_pretrained(out)
                beside = self.repair.beside().named_parameters()
                heads = {n: p.detach().cpu().contiguous() for n, p in beside}
                if heads:
                    save_file(heads, out / BESIDE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """A DeepSpeed engine writes its own part, without the frozen weights."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.repair, Path(resume_from_checkpoint))

    @property
    def _main(self) -> bool:
        return bool(self.args.should_save)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    def _largest(self, x: Tensor) -> Tensor:
        if self.args.world_size > 1:
            x = x.to(self.args.device)
            dist.all_reduce(x, op=dist.ReduceOp.MAX)
        return x

    def _summed(self, x: Tensor) -> Tensor:
        if self.args.world_size > 1:
            dist.all_reduce(x)
        return x


def load_trained(repair: Repair, folder: Path) -> None:
    """Adapter and heads of `save_model`; nothing may be missing."""
    adapters.restore(repair.model, folder)
    if heads := dict(repair.beside().named_parameters()):
        beside: Any = repair.beside().load_state_dict(load_file(folder / BESIDE), strict=False)
        lost = [key for key in beside.missing_keys if key in heads]
        if lost or beside.unexpected_keys:
            raise ValueError(
                f"{folder / BESIDE}: expected this model's heads, found {len(lost)} "
                f"tensors missing and {len(beside.unexpected_keys)} unexpected; resume with the "
                "same config"
            )


def _gathered(parameters: list[torch.nn.Parameter]) -> Any:
    """Whole parameters, where ZeRO-3 has shared them out; only the trained ones."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(parameters)


def _numel(parameter: torch.nn.Parameter) -> int:
    """Also of one that is quantised to two numbers a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(torch.Size(packed.shape).numel())
