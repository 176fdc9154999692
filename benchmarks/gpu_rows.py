"""The rows of `benchmarks/gpu.py` for one model."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size, mcq
from benchmarks.rows.capture import passes
from kvfix.config import load_config
from kvfix.data.catalog import load_units
from kvfix.data.training.examples import scene_examples
from kvfix.data.units import MCQ
from kvfix.eval.mcq.answer import answer
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.source import NEUTRAL, MlmSource
from kvfix.eval.suite import run_task
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.batch import Batch, Collator
from kvfix.repair.key_choice import KeyOptions, choose_keys
from kvfix.repair.lora import LoraOptions, Rates, attach, parameter_groups
from kvfix.repair.module import Repair
from kvfix.repair.plan.make import PlanOptions, make_plan
from kvfix.repair.terms.losses import Losses
from kvfix.repair.train.recipe import Recipe
from kvfix.shipped import nano_dir

RECIPES = Path(__file__).parent.parent / "recipes"
TOKENS = (1000, 7000)
# Dense bfloat16 FLOP/s of the data sheets, by a part of the card's name.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "H800": 989e12}
FAMILY = {
    "llava-onevision-qwen2-7b-ov": "llava_onevision",
    "Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "llama3-llava-next-8b": "llava_next",
}


class Bench(NamedTuple):
    """One model under measurement, and where its rows go."""

    name: str
    device: torch.device
    file: Path
    tiny: bool
    until: float

    def add(self, row: str, **values: Any) -> None:
        """Write a row at once: a process that dies later keeps it."""
        with self.file.open("a") as lines:
            print(json.dumps({"model": self.name, "row": row, **values}), file=lines)

    def compare(
        self, row: str, ours: Callable[[], Any], theirs: Callable[[], Any], **more: Any
    ) -> None:
        """Both sides in turn within each round; medians, and the median of the rounds' ratios."""
        seconds: list[tuple[float, float]] = []
        rounds = more.pop("rounds", 2 if self.tiny else 9)
        cost = more.pop("cost", True)
        for _ in range(rounds + 1):
            seconds.append((self.timed(ours), self.timed(theirs)))
        a, b = zip(*seconds[1:], strict=True)
        ratios = [x / y if cost else y / x for x, y in seconds[1:]]
        self.add(
            row,
            ours=statistics.median(a),
            theirs=statistics.median(b),
            ratio=statistics.median(ratios),
            **more,
        )

    def timed(self, run: Callable[[], Any]) -> float:
        """Wall seconds of one run, the card's work included."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the card has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float | None:
        """Most that was held on the card since the last reset."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None

    def forget(self) -> None:
        """Free what is free, and count peaks anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure(name: str, out: Path, *, tiny: bool, until: float) -> None:
    """Every row of a model; one that fails leaves its reason and the next begins."""
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    bench = Bench(name, device, out / f"{name}.jsonl", tiny, until)
    start = time.perf_counter()
    mlm = _model(bench, quantised=False)
    bench.wait()
    bench.add("building", ours=time.perf_counter() - start, peak_gb=bench.peak_gb())
    for what, part in (
        ("capture", capture),
        ("questions", questions),
        ("steps", partial(steps, zero=False)),
        ("probes", probes),
        ("ZeRO-2", partial(steps, zero=True)),
    ):
        _tried(bench, what, partial(part, bench, mlm))
    del mlm
    bench.forget()
    _tried(bench, "nf4", partial(quantised, bench))


def _tried(bench: Bench, what: str, part: Callable[[], None]) -> None:
    if time.monotonic() > bench.until:
        bench.add(what, note="not run: the budget of seconds was used up")
        return
    try:
        part()
    except Exception as error:  # a row that fails must not cost the others
        bench.add(what, note=f"failed: {type(error).__name__}: {str(error)[:200]}")
    bench.forget()


def _model(bench: Bench, *, quantised: bool) -> Mlm:
    if bench.tiny:
        return load_mlm(str(nano_dir(FAMILY[bench.name])), dtype=torch.float32, device="cpu")
    config, processor = full_size._real_processor(bench.name, pixels=None)
    return full_size._build(bench.name, config, processor, quantised=quantised, device=bench.device)


def capture(bench: Bench, mlm: Mlm) -> None:
    """All sites of all layers beside a plain pass; MFU of the plain pass."""
    kinds = ["sdpa"]
    if bench.device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        kinds.append("flash_attention_2")
    for attn in kinds:
        mlm.base.set_attn_implementation(attn)
        for tokens in (100, 200) if bench.tiny else TOKENS:
            _capture(bench, mlm, tokens, attn)
    mlm.base.set_attn_implementation("sdpa")


def _capture(bench: Bench, mlm: Mlm, tokens: int, attn: str) -> None:
    encoded = mlm.encode([_prompt(mlm, tokens)])
    length = encoded.inputs["input_ids"].shape[1]
    plain, captured = passes(mlm, encoded)
    with FlopCounterMode(display=False) as counter:
        plain()
    bench.forget()
    captured()
    peak = bench.peak_gb()
    note = f"{counter.get_total_flops() / 1e12:.2f} TFLOP"
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else ""
    most = next((flops for part, flops in PEAK_FLOPS.items() if part in card), None)
    if most:
        plain()
        note += f", MFU {counter.get_total_flops() / bench.timed(plain) / most:.0%}"
    bench.compare(
        f"capture, {length} tokens, {attn}",
        captured,
        plain,
        beside="a plain pass",
        goal="<= 1.05x",
        peak_gb=peak,
        note=note,
    )


def _prompt(mlm: Mlm, tokens: int) -> Prompt:
    """One picture, or as many as it takes, of about so many tokens in all."""
    image = Image.effect_noise((896, 896), 60).convert("RGB")
    one = mlm.encode([Prompt((image,), NEUTRAL)]).inputs["input_ids"].shape[1]
    if one > 1.5 * tokens:  # a smaller picture: the side goes with the root of the tokens
        side = max(56, int(896 * (tokens / one) ** 0.5))
        return Prompt((image.resize((side, side)),), NEUTRAL)
    return Prompt((image,) * max(1, round(tokens / one)), NEUTRAL)


def questions(bench: Bench, mlm: Mlm) -> None:
    """64 questions in one way; 16 of them in both."""
    [units] = load_units(("scenes",), tasks=[MCQ], limit=4 if bench.tiny else 64, questions=True)
    asked: list[Any] = [units.load(i) for i in range(len(units))]
    few, protocol = asked[: 2 if bench.tiny else 16], McqProtocol()
    letters: dict[str, list[str | None]] = {}

    def ours() -> None:
        letters["kvfix"] = [a.logprob_letter for a in answer(mlm, few, protocol)]

    def theirs() -> None:
        letters["plain"] = list(mcq.plain(mlm, few, protocol))

    seconds = bench.timed(lambda: answer(mlm, asked, protocol))
    bench.add(f"{len(asked)} questions", ours=seconds, peak_gb=bench.peak_gb())
    row = f"{len(few)} questions"
    bench.compare(
        row, ours, theirs, rounds=1, cost=False, goal=">= 8x", beside="generate-and-score"
    )
    equal = sum(a == b for a, b in zip(*letters.values(), strict=True))
    bench.add(row, note=f"{equal}/{len(few)} letters equal")


def probes(bench: Bench, mlm: Mlm) -> None:
    """Two units of each task, read and scored where the model is."""
    for units in load_units(("scenes",), limit=1 if bench.tiny else 2):
        with tempfile.TemporaryDirectory() as folder:
            source = MlmSource(mlm)
            seconds = bench.timed(lambda: run_task(units, source, Path(folder)))  # noqa: B023
        row = f"{len(units)} units of {units.task}"
        bench.add(row, ours=seconds, peak_gb=bench.peak_gb())
        bench.forget()


class _Side(NamedTuple):
    repair: Repair
    batch: Batch
    optimizer: Any

    def step(self) -> None:
        """As the trainer takes it in one process."""
        amounts = torch.tensor(self.repair.amounts(self.batch))
        loss, _ = self.repair(self.batch, 0, amounts, 1.0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _recipe(bench: Bench, name: str) -> Recipe:
    shapes = "" if bench.tiny else "_7b"
    return load_config(Recipe, RECIPES / f"train_{name}{shapes}.yaml", ["data=scenes"])


def _batch(bench: Bench, mlm: Mlm, recipe: Recipe) -> Batch:
    """One question on two images."""
    examples = scene_examples("train", 64, recipe.scenes)
    pairs = (examples[i] for i in range(64))
    example = next(e for e in pairs if len(e.images) == 2 and e.turns[0].answer)
    batch = Collator(mlm.processor, mlm.config, mlm.family)([example])
    return batch.moved(bench.device, mlm.dtype)


def steps(bench: Bench, mlm: Mlm, *, zero: bool) -> None:
    """Steps of both recipes beside plain LoRA, or the surfacing step under ZeRO-2."""
    recipe = _recipe(bench, "surfacing")
    tuned, report = attach(mlm, LoraOptions())
    try:
        tuned.model.train()
        recompute_layers(tuned.model)
        if zero:
            _zero(bench, tuned, report, recipe)
            return
        plain = _side(bench, tuned, report, recipe, Losses())
        for name in ("surfacing", "artifacts"):
            settings = _recipe(bench, name)
            side = _side(bench, tuned, report, settings, settings.losses)
            bench.forget()
            side.step()
            peak = bench.peak_gb()
            bench.compare(
                f"{name} step",
                side.step,
                plain.step,
                rounds=1 if bench.tiny else 5,
                beside="plain LoRA",
                goal="<= 1.15x",
                peak_gb=peak,
                plan_gb=_plan(mlm, side.batch, None),
            )
    finally:
        tuned.model.unload()
        mlm.model.eval()


def _side(bench: Bench, mlm: Mlm, report: Any, recipe: Recipe, losses: Losses) -> _Side:
    keys = None
    if losses.needs().agnostic:
        examples = scene_examples("train", 64, recipe.scenes)
        keys = choose_keys(mlm, examples, KeyOptions(lowest=0.05), seed=0)
    repair = Repair(mlm, losses, lm=1.0, seed=0, keys=keys).to(bench.device)
    groups = parameter_groups(mlm, report, Rates(), heads=repair.heads)
    return _Side(repair, _batch(bench, mlm, recipe), torch.optim.AdamW(groups))


def _zero(bench: Bench, mlm: Mlm, report: Any, recipe: Recipe) -> None:
    """DeepSpeed's engine around the same module, in one process."""
    if bench.device.type != "cuda" or importlib.util.find_spec("deepspeed") is None:
        bench.add("surfacing step, ZeRO-2", note="not run: needs a GPU and deepspeed")
        return
    import deepspeed

    for key, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29512")):
        os.environ.setdefault(key, value)
    for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(key, value)
    side = _side(bench, mlm, report, recipe, recipe.losses)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=side.repair, optimizer=side.optimizer, config=settings)

    def step() -> None:
        amounts = torch.tensor(side.repair.amounts(side.batch))
        loss, _ = engine(side.batch, 0, amounts, 1.0)
        engine.backward(loss)
        engine.step()

    step()
    bench.forget()
    seconds = statistics.median(bench.timed(step) for _ in range(5))
    bench.add("surfacing step, ZeRO-2", ours=seconds, peak_gb=bench.peak_gb())


def quantised(bench: Bench) -> None:
    """The surfacing step in nf4."""
    if bench.device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        bench.add("surfacing step, nf4", note="not run: needs a GPU and bitsandbytes")
        return
    mlm = _model(bench, quantised=True)
    tuned, report = attach(mlm, LoraOptions())
    tuned.model.train()
    recompute_layers(tuned.model)
    recipe = _recipe(bench, "surfacing")
    side = _side(bench, tuned, report, recipe, recipe.losses)
    side.step()
    bench.forget()
    seconds = statistics.median(bench.timed(side.step) for _ in range(5))
    peak, plan = bench.peak_gb(), _plan(mlm, side.batch, "nf4")
    bench.add("surfacing step, nf4", ours=seconds, peak_gb=peak, plan_gb=plan)


def _plan(mlm: Mlm, batch: Batch, quant: str | None) -> float:
    """What `kvfix plan` foresees for a step on this batch, in GB."""
    spans = batch.encoded.images[0]
    length = batch.encoded.inputs["input_ids"].shape[1]
    sizes = tuple(tuple(span.layout.image_hw) for span in spans)
    options = PlanOptions(
        images=sizes,  # type: ignore[arg-type]
        text_tokens=length - sum(span.layout.n_tokens for span in spans),
        logit_rows=max(1, len(batch.rows_R)),
        dtype=mlm.dtype,
    )
    made = make_plan(mlm.config, options, name=mlm.id, processor=mlm.processor)
    return next(m.total for m in made.memory if m.quant == quant and m.zero == 0) / 1e9
