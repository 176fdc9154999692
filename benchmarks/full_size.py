"""Full-size models with random weights: one diagnosed unit, one training step, and the plan beside.

    python benchmarks/full_size.py                       # three models, both runs
    python benchmarks/full_size.py --run train --model Qwen2.5-VL-7B-Instruct

For each model, in a process of its own: one unit of referring segmentation on scenes (one image,
every layer's hidden states, keys and values) in bfloat16, and one surfacing step in nf4 (LoRA of
rank 16 on the language model; mask, KL anchor and the model's own loss; gradient checkpointing,
AdamW). The unit's image is small: 144 tokens for Qwen, whose pixels are limited, and the least that
its tiles allow for the others. Weights are drawn tensor by tensor and never written; tokenizer and
chat template are the shipped nano's, image processors are set as the real checkpoints set them.

The measured peak is the process's most resident memory; `start` is what Python and the libraries
held before the model, which no plan counts. Freed blocks go back to the system at once
(MALLOC_MMAP_THRESHOLD_), as a GPU's allocator would use them again. Goals: peak at most 22 GB, plan
and start together within 15 % of the peak. Not part of CI: needs 20 GB of memory.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kvfix.checkpoint import folder as checkpoint
from kvfix.data.catalog import load_units
from kvfix.data.training.examples import Example, Mask, Turn
from kvfix.data.units import Sentence
from kvfix.eval.source import MlmSource
from kvfix.eval.suite import run_task
from kvfix.mlm.families import family_of
from kvfix.mlm.load import Mlm, Prompt
from kvfix.mlm.processor import load_processor
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.batch import Collator
from kvfix.repair.lora import LoraOptions, Rates, attach, parameter_groups
from kvfix.repair.module import Repair
from kvfix.repair.plan.make import PlanOptions, make_plan
from kvfix.repair.terms.kl import KlTerm
from kvfix.repair.terms.losses import Losses
from kvfix.repair.terms.mask import MaskTerm
from kvfix.shipped import nano_dir

CONFIGS = Path(__file__).parent.parent / "tests" / "helpers" / "configs"
RUNS = ("diagnose", "train")
TASK = "referring_segmentation"
DTYPE = torch.bfloat16
QWEN_PIXELS = 336 * 336  # 144 tokens
LAYERS = (8, 12)  # of the mask term
MOST_GB = 22.0
WITHIN = 0.15
SPARE_GB = 1.0  # left to the rest of the machine


def main() -> None:
    """One table; exit 1 if a goal is missed."""
    names = sorted(path.stem for path in CONFIGS.glob("*.json"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=names, action="append")
    parser.add_argument("--run", choices=RUNS, action="append")
    parser.add_argument("--minutes", type=float, default=25, help="limit of one run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(_run(*asked.child)))
        return
    results = []
    for name in asked.model or names:
        for run in asked.run or RUNS:
            results.append(_child(name, run, asked.minutes))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    _show(results)
    sys.exit(not all(_ratio(r)[1] for r in results))


def _child(name: str, run: str, minutes: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", name, run]
    # Else glibc keeps freed blocks of up to 32 MB, about half as much again as a step's tensors.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    most = 60 * minutes
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=most, env=env)
    except subprocess.TimeoutExpired:
        raise SystemExit(
            f"{name}, {run}: expected it to end in {minutes:g} minutes, found it running; set "
            "--minutes higher, or stop what else this machine computes"
        ) from None
    if done.returncode:
        raise SystemExit(f"{name}, {run}: failed with exit code {done.returncode}, see above")
    return json.loads(done.stdout.splitlines()[-1])


def _ratio(r: dict[str, Any]) -> tuple[float, bool]:
    """Plan and start over the peak, and whether both goals are met."""
    ratio = (r["plan_gb"] + r["start_gb"]) / r["peak_gb"]
    return ratio, abs(ratio - 1) <= WITHIN and r["peak_gb"] <= MOST_GB


def _show(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"GB (10^9 bytes); goals: peak <= {MOST_GB:.0f}, ratio 1 +- {WITHIN}")
    for column in ("model", "run", "tokens", "plan", "start", "peak", "ratio", "seconds", ""):
        table.add_column(column)
    for r in results:
        ratio, good = _ratio(r)
        sizes = (f"{r[key]:.2f}" for key in ("plan_gb", "start_gb", "peak_gb"))
        seconds = f"{r['seconds']:.0f} ({r['building']:.0f} building)"
        row = (r["model"], r["run"], str(r["tokens"]), *sizes, f"{ratio:.3f}", seconds)
        table.add_row(*row, "met" if good else "MISSED")
    Console(width=120).print(table)


def _run(name: str, run: str) -> dict[str, Any]:
    """In the child: the plan first, then the real thing."""
    start = time.monotonic()
    [units] = load_units(("scenes",), tasks=[TASK], limit=1)
    unit = units.load(0)
    assert isinstance(unit, Sentence)
    config, processor = _real_processor(name)
    size = (unit.image.height, unit.image.width)
    family = family_of(config.model_type, where=name)
    stub = Mlm(name, nn.Module(), processor, family, _no_weights(), None, DTYPE)
    if run == "train":
        batch = Collator(processor, config, family)([_example(unit)])
        encoded, rows = batch.encoded, len(batch.rows_R)
    else:
        encoded = _encoded(stub, config, Prompt((unit.image,), unit.text))
        rows = 1
    tokens = encoded.inputs["input_ids"].shape[1]
    pictures = encoded.images[0][0].layout.n_tokens
    planned = make_plan(
        config,
        PlanOptions(images=(size,), text_tokens=tokens - pictures, logit_rows=rows, dtype=DTYPE),
        name=name,
        processor=processor,
    )
    ways = {m.quant: m.total for m in planned.memory if m.zero == 0}
    plan = planned.reading["plain"] if run == "diagnose" else ways["nf4"]
    _check_room(plan)
    before = _resident()
    mlm = _build(name, config, processor, quantised=run == "train")
    built = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if run == "diagnose":
            source = MlmSource(mlm, kinds=("hidden", "key", "value"))
            done = run_task(units, source, Path(folder))
            assert len(done.rows) and not done.left_out, done.left_out
        else:
            _step(mlm, batch)
    return {
        "model": name,
        "run": run,
        "tokens": tokens,
        "plan_gb": plan / 1e9,
        "start_gb": before / 1e9,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "building": built - start,
        "seconds": time.monotonic() - start,
    }


def _step(mlm: Mlm, batch: Any) -> None:
    """One step as the trainer makes it, in one process."""
    tuned, report = attach(mlm, LoraOptions())
    tuned.model.train()
    recompute_layers(tuned.model)
    losses = Losses(mask=MaskTerm(weight=0.5, layers=LAYERS), kl=KlTerm(weight=0.1))
    repair = Repair(tuned, losses, lm=1.0, seed=0)
    groups = parameter_groups(tuned, report, Rates(), heads=repair.heads)
    optimizer = torch.optim.AdamW(groups)
    batch = batch.moved(tuned.device, DTYPE)
    amounts = torch.tensor(repair.amounts(batch))
    loss, _ = repair(batch, 0, amounts, 1.0)
    loss.backward()
    trained = [p for group in groups for p in group["params"]]
    assert torch.isfinite(loss) and all(p.grad is not None for p in trained), float(loss)
    optimizer.step()


def _example(unit: Any) -> Example:
    """A question about the unit's object, and its mask."""
    turn = Turn((None, f"Where is {unit.text}?"), "In the picture.")
    return Example(unit.id, (unit.image,), (turn,), masks=(Mask(0, unit.mask),))


# --- models ---------------------------------------------------------------------------------------


def _real_processor(name: str, pixels: int | None = QWEN_PIXELS) -> tuple[Any, Any]:
    """The real config, and the nano's processor with the real images' sizes.

    `pixels` limits Qwen's images; None leaves the checkpoint's own limits. The config takes the
    nano's image token: its tokenizer has another number for it.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    nano = nano_dir(config.model_type)
    family = family_of(config.model_type, where=name)
    processor = load_processor(nano, checkpoint.load_config(nano), family)
    vision, images = config.vision_config, processor.image_processor
    for key, value in _image_settings(config, images, pixels).items():
        setattr(images, key, value)
    for key, value in (
        ("patch_size", vision.patch_size),
        ("num_image_tokens", (getattr(vision, "image_size", 0) // vision.patch_size) ** 2),
    ):
        if hasattr(processor, key):
            setattr(processor, key, value)
    config.image_token_id = processor.image_token_id
    return config, processor


def _image_settings(config: Any, pixels: Any, most: int | None) -> dict[str, Any]:
    vision = config.vision_config
    if hasattr(pixels, "merge_size"):
        limits = {"shortest_edge": most or 56 * 56, "longest_edge": most or 28 * 28 * 16384}
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        return sizes | {"size": type(pixels.size)(**limits)}
    side = vision.image_size
    known = {key for key, value in dict(pixels.size).items() if value is not None}
    settings: dict[str, Any] = {
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "size": type(pixels.size)(**dict.fromkeys(known, side)),
    }
    if getattr(pixels, "crop_size", None) is not None:
        settings["crop_size"] = type(pixels.crop_size)(height=side, width=side)
    return settings


def _encoded(stub: Mlm, config: Any, prompt: Prompt) -> Any:
    """As `Mlm.encode`, before there is a model."""
    from kvfix.mlm.prompts import encode

    return encode(
        [prompt],
        processor=stub.processor,
        config=config,
        family=stub.family,
        device=torch.device("cpu"),
        dtype=DTYPE,
    )


def _build(
    name: str, config: Any, processor: Any, *, quantised: bool, device: torch.device | str = "cpu"
) -> Mlm:
    """Random weights, tensor by tensor: at no time two copies of anything large."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    family = family_of(config.model_type, where=name)
    with init_empty_weights():  # parameters on the meta device, buffers with their numbers
        model = AutoModelForImageTextToText.from_config(config, dtype=DTYPE)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    if quantised:
        _quantise(model, family.lm, generator)
    for module in model.modules():
        for key, weight in list(module._parameters.items()):
            if weight is not None and weight.is_meta:
                drawn = _drawn(weight.shape, generator)
                module._parameters[key] = nn.Parameter(drawn, requires_grad=False)
    left = [n for n, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    assert not left, left
    model.to(device)  # buffers; parameters were drawn there
    return Mlm(name, model.eval(), processor, family, _no_weights(), None, DTYPE)


def _drawn(shape: Any, generator: torch.Generator) -> Tensor:
    """Matrices of a usual start; vectors of ones serve norms, and biases do no harm by it."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=DTYPE, device=generator.device)
    drawn = torch.empty(shape, dtype=DTYPE, device=generator.device)
    return drawn.normal_(std=0.02, generator=generator)


def _quantise(model: Any, lm: str, generator: torch.Generator) -> None:
    """Every linear layer of the language model, as `load_mlm(quant="nf4")` would load it.

    Layers of one shape hold copies of the same numbers.
    """
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig

    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
        bnb_4bit_quant_storage=DTYPE,
    )
    model.is_loaded_in_4bit = model.is_quantized = True
    kind: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    first: dict[tuple[int, ...], Any] = {}  # quantising 7e9 weights would take minutes
    body = model.get_submodule(lm)
    for path, old in [(n, m) for n, m in body.named_modules() if isinstance(m, nn.Linear)]:
        with torch.device("meta"):
            new = bnb.nn.Linear4bit(
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                compute_dtype=DTYPE,
                quant_storage=DTYPE,
                **kind,
            )
        shape = tuple(old.weight.shape)
        if shape not in first:
            drawn = _drawn(shape, generator)
            first[shape] = bnb.functional.quantize_4bit(drawn, quant_storage=DTYPE, **kind)
        codes, state = first[shape]
        new.weight = bnb.nn.Params4bit(
            codes.clone(),
            requires_grad=False,
            quant_state=copy.deepcopy(state),
            quant_storage=DTYPE,
            bnb_quantized=True,
            module=new,
            **kind,
        )
        new.quant_state = new.weight.quant_state
        parent, _, leaf = path.rpartition(".")
        setattr(body.get_submodule(parent), leaf, new)
    checkpoint.forbid_repacking(model)


def _no_weights() -> checkpoint.Weights:
    return checkpoint.Weights(folder=Path(), files=(), config={}, revision=None, seed=0)


# --- the machine ----------------------------------------------------------------------------------


def _resident() -> int:
    """Bytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _check_room(plan: int) -> None:
    """Refuse to start what would drive the machine out of memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if free < plan + SPARE_GB * 1e9:
        raise SystemExit(
            f"expected {plan / 1e9 + SPARE_GB:.1f} GB of free memory, found {free / 1e9:.1f}"
        )


if __name__ == "__main__":
    main()
