"""What kvfix costs on H100s for models of full size, from counted FLOP and bytes: SCALE.md.

    python benchmarks/scale.py > benchmarks/SCALE.md

Counts come from the real configs (weights, layers, heads) and kvfix's own layouts (tokens of an
image of 640 x 480 pixels); no model is run. Speed is that of the data sheet times the shares below,
which are assumptions until `benchmarks/gpu.py` has measured them on a card; what was measured on
one H100 stands beside what this page foresees.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from kvfix.mlm.families import family_of
from kvfix.repair.dry_run import skeleton
from kvfix.repair.plan.make import PlanOptions, make_plan

CONFIGS = Path(__file__).parent.parent / "tests" / "helpers" / "configs"
MODELS = ("llava-onevision-qwen2-7b-ov", "Qwen2.5-VL-7B-Instruct", "llama3-llava-next-8b")
FLOPS, BANDWIDTH = 989e12, 3.35e12  # an H100 SXM: dense bfloat16, HBM bytes/s
LINK, DISK = 450e9, 2e9  # NVLink one way, and a disk that feeds weights and photos, bytes/s
MFU = {"read": 0.40, "train": 0.30}  # of long passes; of a step with recomputed layers
CPU_IMAGE = 0.02  # CPU-seconds to decode and cut one photo into tiles, a core
CORES = 16  # of the machine, for one card
ROW_BYTES = 400  # a line of samples/*.jsonl, measured on the nano's run
LONG = 7384  # tokens of the pass that was timed on an H100
TEXT = 64  # tokens beside the image
SHOT = 6  # images of a few-shot episode; other tasks read one to eight


class Job(NamedTuple):
    """Passes over one image that a job takes, at its usual size."""

    name: str
    reads: int  # forward passes of one image
    steps: int = 0  # examples trained on, two images each
    units: int = 0  # that leave a row for each site


# The benchmarks' validation halves that a full diagnose reads: 1,000 episodes of six images, 200
# groups of eight, 2,000 sentences, 2,000 pairs, 30 clips of 70 frames; the control reads half of
# it, prefixes three times the episodes and sentences, 1,900 questions of two images twice.
FLOW = 1000 * SHOT + 200 * 8 + 2000 + 2 * 2000 + 30 * 70
DIAGNOSE = Job(
    "kvfix diagnose", FLOW + FLOW // 2 + 3 * (1000 * SHOT + 2000) + 2 * 2 * 1900, units=5230
)
JOBS = (
    DIAGNOSE,
    Job("train_surfacing, 2,000 steps of 8", 0, steps=16_000),
    Job("train_artifacts, 1,000 steps of 8", 64, steps=8_000),
)


class Shape(NamedTuple):
    """What of a model the costs follow from."""

    name: str
    lm: int  # parameters that each token passes
    tower: int
    tokens: int  # of one image
    patches: int  # that the tower sees for it
    layers: int
    width: int  # channels of all query heads together
    values: int  # channels of the hidden state, keys and values of a layer
    memory: dict[str, float]  # GB: to read, to train, to train in nf4


def shape_of(name: str) -> Shape:
    """Counted from the config; no weights."""
    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    options = PlanOptions(text_tokens=TEXT, logit_rows=TEXT, dtype=torch.bfloat16)
    made = make_plan(config, options, name=name)
    mlm = skeleton(config, name=name, dtype=torch.bfloat16, processor=None)
    family = family_of(config.model_type, where=name)
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    lm = _count(mlm.base.get_submodule(family.lm)) - text.vocab_size * text.hidden_size
    ways = {m.quant: m.total / 1e9 for m in made.memory if m.zero == 0}
    tokens = made.sample_tokens
    return Shape(
        name,
        lm,
        _count(mlm.base.get_submodule(family.vision)),
        tokens,
        tokens * family.patches_a_token(config),
        text.num_hidden_layers,
        text.num_attention_heads * head,
        text.hidden_size + 2 * text.num_key_value_heads * head,
        {"read": made.reading["plain"] / 1e9, "train": ways[None], "nf4": ways["nf4"]},
    )


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def forward_flop(shape: Shape, images: int = 1) -> float:
    """Of one pass: two for each weight and token, and causal attention."""
    length = images * shape.tokens + TEXT
    attention = 2 * shape.layers * shape.width * length**2  # half of 4 L^2 d: causal
    return 2 * shape.lm * length + attention + 2 * shape.tower * images * shape.patches


class Cost(NamedTuple):
    """Seconds of a job on some cards, by what could bound it."""

    compute: float
    cpu: float
    disk: float
    rows_gb: float

    @property
    def bound(self) -> str:
        """The dominating one."""
        named = {"compute": self.compute, "photos on the CPU": self.cpu, "disk": self.disk}
        return max(named, key=lambda name: named[name])

    @property
    def seconds(self) -> float:
        """What is bounded by one thing at a time: photos are read beside the work."""
        return max(self.compute, self.cpu, self.disk)


def cost(shape: Shape, job: Job, cards: int, times: int) -> Cost:
    """Of a job over `times` its usual data."""
    # A step: forward, recomputed forward, and backward to activations alone (weights are frozen).
    step = 3 * forward_flop(shape, 2)
    flop = times * (job.reads * forward_flop(shape) / MFU["read"] + job.steps * step / MFU["train"])
    images = times * (job.reads + 2 * job.steps)
    weights = 2 * (shape.lm + shape.tower)
    sites = 3 * shape.layers + 2
    return Cost(
        flop / FLOPS / cards,
        images * CPU_IMAGE / (CORES * cards),
        weights / DISK + images * 2e5 / DISK / cards,
        times * job.units * sites * ROW_BYTES / 1e9,
    )


def main() -> None:
    """Print the page."""
    with redirect_stdout(sys.stderr):  # libraries print warnings there
        shapes = [shape_of(name) for name in MODELS]
    print(HEAD)
    print("| model | LM weights | tokens an image | TFLOP a pass | GB read | GB train | GB nf4 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for s in shapes:
        memory = " | ".join(f"{s.memory[key]:.1f}" for key in ("read", "train", "nf4"))
        flop = forward_flop(s) / 1e12
        print(f"| {s.name} | {s.lm / 1e9:.2f} B | {s.tokens:,} | {flop:.1f} | {memory} |")
    print("\n## Hours\n")
    print("| model | job | 1 H100 | 8 H100 | 100x data, 8 H100 | bound (1 / 100x) | rows, 100x |")
    print("|---|---|---:|---:|---:|---|---:|")
    for s in shapes:
        for job in JOBS:
            one, eight, much = (cost(s, job, *n) for n in ((1, 1), (8, 1), (8, 100)))
            hours = " | ".join(f"{c.seconds / 3600:.2f}" for c in (one, eight, much))
            bounds = f"{one.bound} / {much.bound}"
            print(f"| {s.name} | {job.name} | {hours} | {bounds} | {much.rows_gb:.1f} GB |")
    s = shapes[0]
    adapter = 2 * 2 * 16 * 2 * s.layers * 7 * s.width
    traffic = 2 * adapter / LINK
    held = s.layers * s.values * s.tokens * 4 / 1e9
    one_gb = s.lm * 2 / 1e9
    on_one = cost(s, DIAGNOSE, 1, 1)
    print(
        TAIL.format(
            adapter=adapter / 1e6,
            traffic=1e3 * traffic,
            held=held,
            weights=one_gb,
            stream=1e12 * one_gb / BANDWIDTH,
            work=1e3 * forward_flop(s) / FLOPS / MFU["read"],
            compute=on_one.compute,
            cpu=on_one.cpu,
            few=CORES * on_one.cpu / on_one.compute,
        ).rstrip()
    )


HEAD = f"""# Scale

Printed by `python benchmarks/scale.py`, from configs and layouts; nothing here is a measurement
unless it says so. Assumed: {FLOPS / 1e12:.0f} TFLOP/s of an H100 in bfloat16, of which
{MFU["read"]:.0%} are reached in reading and {MFU["train"]:.0%} in training; {CPU_IMAGE} CPU-seconds
a photo on {CORES} cores a card; {DISK / 1e9:.0f} GB/s of disk. An image has 640 x 480 pixels, a
training example two images. A full diagnose is {DIAGNOSE.reads:,} passes of an image (near the
benchmarks' own splits), the recipes are those of the YAML files for 7B.
"""

TAIL = """
## Which bound dominates

- **Compute**, everywhere but where a row says otherwise. A pass over one image streams
  {weights:.0f} GB of weights in {stream:.0f} ms and computes for {work:.0f} ms: memory bandwidth
  bounds only the writing of answers, token by token.
- **Links** do not matter: ranks of eval and diagnose share nothing but rows, and a step of LoRA
  of rank 16 sends {adapter:.0f} MB of gradients, {traffic:.1f} ms over NVLink, against a second
  of computing.
- **Memory** is the weights, and for reading {held:.2f} GB of float32 features an image of
  LLaVA-OneVision; it does not grow with the number of units. A batch is at most 8,192 image
  tokens.
- **Probes** run on the card; what they take there is not counted (`benchmarks/gpu.py` times them).

## Where the design would break

- **Rows.** One JSON line for each unit and site: at 100x the data the last column of the table,
  which `report` and `compare` read into memory as columns of floats. Beyond some 10 GB, rows
  should become one line a unit.
- **Bootstrap.** 10,000 resamples of G clusters at S sites cost 10,000 x G x S multiply-adds: at
  100,000 clusters and 86 sites minutes on one core. A Poisson bootstrap by shards would replace
  it.
- **k-means** of a group holds (sites x seeds x 14 centres x cells) floats; groups of hundreds of
  images, not their number, break it.
- **One process reads the photos of its rank.** A diagnose of the first model on one card computes
  for {compute:.0f} s and decodes for {cpu:.0f} s on the cores assumed; decoding
  would bound with {few:.1f} cores a card or fewer.
- **A model over one card** needs `--device auto`, which uses one card at a time: eight cards are
  then as fast as one.
"""


if __name__ == "__main__":
    main()
