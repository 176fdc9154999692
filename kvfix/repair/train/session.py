"""The steps of one start of a training: from what is made ready to what is on disk."""

from __future__ import annotations

import gc
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from kvfix.repair.batch import Collator
from kvfix.repair.train.guard import Diverged
from kvfix.repair.train.launch import set_rank_variables
from kvfix.repair.train.resume import Work
from kvfix.repair.train.saves import checkpoints, publish, step_of
from kvfix.repair.train.shared_memory import forget
from kvfix.repair.train.stops import Stops
from kvfix.runs.atomic import partial_of
from kvfix.terminal import Interrupted
from kvfix.wording import cause


class Ended(NamedTuple):
    """How the steps ended."""

    step: int  # the last one
    seconds: float  # that they took


def run_steps(work: Work, *, begin: Callable[[], None], end: Callable[[str, float], None]) -> Ended:
    """Train until the last step, a wish to stop, or something that cannot go on.

    Every rank calls `begin` when all is ready and the first step is next, and `end` with how and
    after how many seconds the steps ended. Interrupted: by Ctrl-C or SIGTERM, with a checkpoint. A
    ValueError says what is kept and how to go on.
    """
    recipe, out, going = work.recipe, work.out, work.going
    with Stops(alone=work.launch.world == 1) as stops:
        trainer = _trainer(work, stops)
        begin()
        start = time.time()
        try:
            _take_steps(trainer, going.last)
            step = trainer.state.global_step
            if trainer.flow.lost and step < recipe.steps:
                raise ValueError(_unreadable(trainer.flow.lost))
            if step >= recipe.steps:
                _publish(trainer, out)
        except (ValueError, OSError, EOFError, RuntimeError) as error:
            end(f"failed: {cause(error)}", time.time() - start)
            raise ValueError(_failed(error, trainer, work)) from error
        seconds = time.time() - start
        if step >= recipe.steps:
            end("finished", seconds)
        else:
            end(f"stopped after step {step}", seconds)
            work.monitor.say(_stopped(step, work))
            if stops.signal is not None:
                raise Interrupted("", stops.code)
    gc.collect()
    return Ended(step, seconds)


def _unreadable(lost: Sequence[str]) -> str:
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    return f"{lost[0]}{more}; other examples took their place in this step"


def _trainer(work: Work, stops: Stops) -> Any:
    from transformers import TrainingArguments  # seconds to import

    from kvfix.repair.train.flow import Flow
    from kvfix.repair.train.trainer import RepairTrainer, load_trained

    recipe, launch, repair, going = work.recipe, work.launch, work.repair, work.going
    if recipe.adapter and going.last is None:
        load_trained(repair, Path(recipe.adapter))
    if recipe.checkpointing:
        repair.model.enable_input_require_grads()
    set_rank_variables(launch)
    args = TrainingArguments(
        output_dir=str(work.out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.rates.lm,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.clip,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would log a loss that is NaN as 0
        save_strategy="no",  # `Flow` says when
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=launch.deepspeed is not None and repair.mlm.dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=launch.deepspeed,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=False,
        # Else the last batch of an epoch is filled up from its start, on several ranks only.
        dataloader_drop_last=len(work.examples) >= recipe.batch * launch.world,
        ddp_find_unused_parameters=False,
        report_to=recipe.report_to,
        disable_tqdm=True,
        log_level="error",
    )
    if args.world_size != launch.world:
        # Each rank would train alone on the same data, and nothing would say so.
        raise ValueError(f"expected {launch.world} ranks, found {args.world_size}")
    if launch.deepspeed is not None and not torch.cuda.is_available():
        dist.barrier()
        forget(launch.rank)
    collator = Collator(
        repair.mlm.processor,
        repair.mlm.config,
        repair.mlm.family,
        choices=recipe.losses.distil.weight > 0,
    )
    flow = Flow(
        stops,
        every=recipe.save_every,
        minutes=recipe.save_minutes,
        stop_at=recipe.stop_at,
        world=launch.world,
    )
    return RepairTrainer(work, args, collator, flow)


def _publish(trainer: Any, out: Path) -> None:
    trainer.check_finite()
    staging = partial_of(out / "adapter")
    if trainer.args.should_save:
        staging.mkdir(exist_ok=True)
    trainer.save_model(str(staging))
    if trainer.args.should_save:
        publish([p for p in staging.iterdir() if p.is_file()], out)
        shutil.rmtree(staging)


def command_to_go_on(command: Sequence[str], **changed: object) -> str:
    """What was typed, with other settings at its end, where they win."""
    words = [w for w in command if w.partition("=")[0] not in ("resume", "stop_at", *changed)]
    return shlex.join([*words, *(f"{name}={value}" for name, value in changed.items())])


def _stopped(step: int, work: Work) -> str:
    last = checkpoints(work.out)[-1]
    return (
        f"stopped after step {step} of {work.recipe.steps}; {last} holds it; go on with: "
        f"{command_to_go_on(work.command, resume='true')}"
    )


def _failed(error: Exception, trainer: Any, work: Work) -> str:
    """In one line: what failed, what is kept, what to type."""
    kept = checkpoints(work.out)
    if isinstance(error, Diverged):
        lower: dict[str, object] = {
            f"rates.{name}": f"{getattr(work.recipe.rates, name) / 10:g}" for name in error.rates
        }
        if not kept:
            again = command_to_go_on(work.command, **lower)
            return f"{error}; no checkpoint had been written; begin anew with lower rates: {again}"
        more = {"adapter": kept[-1], "out": f"{work.out}-lower", **lower}
        return (
            f"{error}; the last good checkpoint is {kept[-1]}{_losses(trainer, kept[-1])}; go on "
            "from it, or from an earlier one, with lower rates: "
            f"{command_to_go_on(work.command, **more)}"
        )
    text = cause(error) if isinstance(error, ValueError | OSError) else _told(error)
    text = f"after step {trainer.state.global_step}: {text}"
    if not kept:
        return f"{text}; no checkpoint had been written"
    again = command_to_go_on(work.command, resume="true")
    return f"{text}; the last checkpoint is {kept[-1]}; go on with: {again}"


def _take_steps(trainer: Any, last: Path | None) -> None:
    """Train; a worker's death may show as a closed connection before torch tells of it."""
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (ConnectionError, EOFError):
        time.sleep(1)  # the handler raises in here
        raise


def _losses(trainer: Any, checkpoint: Path) -> str:
    """What the loss was there and at first: a checkpoint may be finite and yet of no use."""
    seen = [(line["step"], line["loss"]) for line in trainer.state.log_history if "loss" in line]
    until = [loss for step, loss in seen if step <= step_of(checkpoint)]
    return f" (loss {until[-1]:.4g} there, {until[0]:.4g} at first)" if until else ""


def _told(error: Exception) -> str:
    """What torch means by some of its errors."""
    text = cause(error)
    if "DataLoader worker" in text:
        return f"a process that prepares batches died ({text}); fewer workers need less memory"
    if any(part in text for part in ("closed by peer", "reset by peer", "Broken pipe")):
        return f"another rank ended ({text})"
    if "PytorchStreamWriter" in text or "iostream error" in text:
        return f"a checkpoint could not be written; is the disk full? ({text})"
    return f"{type(error).__name__}: {text}"
