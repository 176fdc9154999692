"""Plans: of the real 7B and 8B configurations, and beside what tiny models do and hold."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import steps
import tiny
import torch
from commands import call
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from grids import grid_layout
from places import CONFIGS
from transformers import AutoConfig

from kvfix.data.units import Clip
from kvfix.eval.probes.tasks import TASKS
from kvfix.eval.source import View
from kvfix.mlm.images.shapes import PixelLimits
from kvfix.mlm.load import Prompt, load_mlm
from kvfix.mlm.renamed import recompute_layers
from kvfix.repair.base_pass import logits_at
from kvfix.repair.dry_run import PeakBytes, reading_peak, skeleton, training_peak
from kvfix.repair.lora import LoraOptions, attach
from kvfix.repair.plan.make import Plan, PlanOptions, make_plan, plan_batch
from kvfix.repair.plan.sizes import CLIP_FRAMES, lay_out, nf4_bytes, weight_bytes
from kvfix.repair.terms.kl import kl_anchor

QWEN, ONEVISION, NEXT = (
    "Qwen2.5-VL-7B-Instruct",
    "llava-onevision-qwen2-7b-ov",
    "llama3-llava-next-8b",
)
GIB = 2**30


@cache
def _plan(name: str, **options: Any) -> Plan:
    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    return make_plan(config, PlanOptions(**options), name=name)


# --- the real configurations ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "layers", "adapter", "tokens", "grid"),
    [
        # LoRA of rank 16: 16 x (in + out) of q, k, v, o, gate, up, down, by hand.
        (QWEN, 8_292_166_656, 28, 16 * (2 * 7168 + 2 * 4096 + 3 * 22528), 391, (17, 23)),
        (ONEVISION, 8_030_807_584, 28, 16 * (2 * 7168 + 2 * 4096 + 3 * 22528), 2929, (40, 54)),
        (NEXT, 8_355_276_800, 32, 16 * (2 * 8192 + 2 * 5120 + 3 * 18432), 2340, (36, 48)),
    ],
)
def test_the_real_models(name, parameters, layers, adapter, tokens, grid) -> None:
    made = _plan(name)
    assert made.parameters == parameters
    assert {part: len(names) for part, names in made.report.modules.items()} == {"lm": 7 * layers}
    assert made.report.trainable == {"lm": layers * adapter}
    assert made.report.share == layers * adapter / (parameters + layers * adapter)
    assert made.tokens == (((480, 640), tokens, grid),)
    first = {m.quant: m for m in made.memory if m.zero == 0}
    assert 14.9 * GIB < first[None].weights < 15.7 * GIB
    assert 5.4 * GIB < first["nf4"].weights < 6.5 * GIB
    assert first[None].states == 16 * layers * adapter
    refused = [(m.quant, m.zero, m.offload) for m in made.memory if m.refusal]
    assert refused == [("nf4", 3, "all")]
    # Layers x (hidden + keys + values), patches and image tokens, two bytes each.
    channels = {
        QWEN: 28 * (3584 + 2 * 512) + 4 * 1280 + 3584,
        ONEVISION: 28 * (3584 + 2 * 512) + 1152 + 3584,
        NEXT: 32 * (4096 + 2 * 1024) + 1024 + 4096,
    }
    assert made.flow_image == 2 * grid[0] * grid[1] * channels[name]
    together = max(1, 8192 // made.tokens[0].tokens)
    held = (8 + 2 * together) * made.flow_image + 3 * 2**29
    assert made.flow_images == 8 + together
    one_pass = (made.flow["plain"] - first[None].weights - held) / together
    assert 0 < one_pass < GIB


@pytest.mark.slow
def test_parts_sizes_and_checkpointing_of_a_real_model() -> None:
    options: dict[str, Any] = {
        "images": ((480, 640), (1080, 1920)),
        "limits": PixelLimits(None, 28 * 28 * 256),
        "lora": LoraOptions(parts=("lm", "projector", "vision")),
    }
    made = _plan(QWEN, **options)
    found = {part: len(names) for part, names in made.report.modules.items()}
    assert found == {"lm": 28 * 7, "projector": 2, "vision": 32 * 5}
    # 480 x 640 scaled by sqrt(480 * 640 / 200704) = 1.237, 28 pixels a cell: 13.86 -> 13 rows.
    assert [(t.tokens, t.grid_hw) for t in made.tokens] == [(234, (13, 18)), (252, (12, 21))]
    assert made.sample_tokens == 234 + 252
    more = _plan(QWEN, checkpointing=False, **options)
    assert more.memory[0].activations > 5 * made.memory[0].activations


def test_stages_spread_what_they_should(checkpoint) -> None:
    config = AutoConfig.from_pretrained(checkpoint("qwen2_5_vl"))
    small: dict[str, Any] = {"images": ((60, 100),), "dtype": torch.bfloat16}
    one, four = (make_plan(config, PlanOptions(gpus=n, **small), name="x") for n in (1, 4))
    trained = sum(one.report.trainable.values())
    head = 128 * 128 + 128  # the merger's first layer, the largest module
    ways = {(m.zero, m.offload): m for m in four.memory if m.quant is None}
    single = {(m.zero, m.offload): m for m in one.memory if m.quant is None}
    for way, m in ways.items():
        assert m.activations == single[way].activations
        spread = 4 if m.zero == 3 else 1
        assert m.weights == pytest.approx(
            0 if m.offload == "all" else single[way].weights / spread, abs=1
        )
    assert single[1, "none"].states == single[0, "none"].states == 16 * trained
    assert ways[1, "none"].states == 8 * trained + 2 * trained
    for offload in (False, True):
        host, gpu = estimate_zero2_model_states_mem_needs(
            trained, num_gpus_per_node=4, cpu_offload=offload
        )
        found = ways[2, "optimizer" if offload else "none"]
        assert (found.host, found.states) == (host, gpu)
    for name, given in (("none", (False, False)), ("optimizer", (True, False))):
        host, gpu, _ = estimate_zero3_model_states_mem_needs(trained, head, 4, 1, *given)
        assert (ways[3, name].host, ways[3, name].states) == (host, gpu)
    assert ways[3, "all"].host > 2 * one.parameters
    nf4 = next(m for m in one.memory if m.quant == "nf4")
    unpacked = 2 * 32 * 48  # one MLP weight in bfloat16
    assert nf4.activations == single[0, "none"].activations + unpacked
    assert nf4.total == nf4.weights + nf4.states + nf4.activations


# --- beside tiny models ---------------------------------------------------------------------------


def test_peak_bytes_by_hand() -> None:
    known = torch.zeros(1000)
    with PeakBytes([known]) as counter:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1  # 800
        view = b[:10]
        del a
        assert (counter.now, counter.peak) == (400, 800)
        del b
        known.add_(1)
        assert (counter.now, counter.peak) == (400, 800)  # the view holds b
        del view
        c = torch.zeros(300, dtype=torch.bfloat16)
        assert (counter.now, counter.peak) == (600, 800)
    del c


@pytest.mark.parametrize("name", [*tiny.EVERY, "llava_full", "onevision_shrunk"])
def test_tokens_are_the_processors(name, checkpoint) -> None:
    mlm = load_mlm(str(checkpoint(name)))
    bare = skeleton(mlm.config, name=name, dtype=mlm.dtype, processor=mlm.processor)
    for sizes in (((60, 100),), ((90, 40),), ((48, 48), (30, 80))):
        prompt = Prompt(tuple(tiny.photo(*size) for size in sizes), "what?")
        real = [span.layout for span in mlm.encode([prompt]).images[0]]
        planned = lay_out(bare, sizes, PixelLimits())
        assert [x.n_tokens for x in planned] == [x.n_tokens for x in real]
        assert [x.grid_hw for x in planned] == [x.grid_hw for x in real]


def test_pixel_limits_are_the_processors_or_the_given_ones(checkpoint) -> None:
    mlm = load_mlm(str(checkpoint("qwen2_5_vl")))
    for least, most in ((8 * 8, 32 * 32), (64 * 64, 96 * 96)):
        mlm.processor.image_processor.size = {"shortest_edge": least, "longest_edge": most}
        prompt = Prompt((tiny.photo(60, 40),), "what?")
        [span] = mlm.encode([prompt]).images[0]
        bare = skeleton(mlm.config, name="x", dtype=mlm.dtype)
        [planned] = lay_out(bare, [(60, 40)], PixelLimits(least, most))
        assert planned.grid_hw == span.layout.grid_hw
    for wrong in (PixelLimits(100, 99), PixelLimits(None, 63)):
        with pytest.raises(ValueError, match="expected pixel limits with at least 64 pixels"):
            lay_out(bare, [(60, 40)], wrong)
    config = load_mlm(str(checkpoint("llava_next"))).config
    other = skeleton(config, name="x", dtype=torch.float32)
    with pytest.raises(ValueError, match="expected no pixel limits for llava_next"):
        lay_out(other, [(60, 40)], PixelLimits(None, 99))
    lone = skeleton(load_mlm(str(checkpoint("llava"))).config, name="x", dtype=torch.float32)
    with pytest.raises(ValueError, match="expected the processor's files beside"):
        lay_out(lone, [(60, 40)], PixelLimits())


@pytest.mark.parametrize(
    ("name", "checkpointing", "dtype"),
    [
        *product(tiny.FAMILIES, (False, True), (torch.float32, torch.bfloat16)),
        *((name, True, torch.bfloat16) for name in tiny.MORE),
    ],
)
def test_planned_activations_are_those_of_a_real_step(
    name, checkpointing, dtype, checkpoint
) -> None:
    """A pass over the processor's own batch, real tensors counted by the same counter."""
    # Gemma 3's projector has no linear layer.
    parts = ("lm", "vision") if name == "gemma3" else ("lm", "projector", "vision")
    lora = LoraOptions(parts=parts, rank=4)
    mlm = load_mlm(str(checkpoint(name)), dtype=dtype)
    sizes = (steps.IMAGE_HW,)
    encoded = mlm.encode([Prompt((tiny.photo(*sizes[0]),), "what is this and where?")])
    length = encoded.inputs["input_ids"].shape[1]
    pictures = encoded.images[0][0].layout.n_tokens
    options = PlanOptions(
        lora=lora, images=sizes, text_tokens=length - pictures, logit_rows=8, dtype=mlm.dtype
    )
    bare = skeleton(mlm.config, name=name, dtype=mlm.dtype, processor=mlm.processor)
    batch = plan_batch(bare, options)
    planned_reading = reading_peak(
        skeleton(mlm.config, name=name, dtype=mlm.dtype, processor=mlm.processor), batch
    )
    planned = training_peak(attach(bare, lora).mlm, batch, checkpointing=checkpointing)

    rows_N = torch.arange(length - 8, length)
    if mlm.family.positions_from_mask:
        # Without padding transformers leaves out the attention mask; not on tensors without data.
        encoded.inputs["attention_mask"][0, 0] = 0

    def logits() -> torch.Tensor:
        inputs = {name: value.clone() for name, value in encoded.inputs.items()}
        hidden = mlm.base.model(**inputs, use_cache=False).last_hidden_state
        return logits_at(mlm, hidden, rows_N)

    with torch.no_grad(), PeakBytes([*mlm.model.parameters(), *mlm.model.buffers()]) as reading:
        logits()
    tuned = attach(mlm, lora).mlm.model.train()
    if checkpointing:
        recompute_layers(tuned)
    known = [*tuned.parameters(), *tuned.buffers()]
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            known.append(parameter.grad)
    with PeakBytes(known) as counter:
        with torch.no_grad():
            base = logits()
        kl_anchor(logits(), base, torch.ones(8)).value.backward()
    assert planned == pytest.approx(counter.peak, rel=0.1)
    assert planned_reading == pytest.approx(reading.peak, rel=0.1)


@pytest.mark.parametrize("together", [1, 3])
def test_a_clip_holds_no_more_images_than_planned(together: int) -> None:
    """A pass of so many frames, which hooks hold once more: that half is not in the stand-in."""
    layout = grid_layout((16, 16), (4, 4))
    mask = np.zeros(layout.image_hw, np.uint8)
    mask[4:12, 4:12] = 1
    seen: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Clips:
        def clip(self, frames: list[None], *, fps: float) -> Iterator[View]:
            nonlocal most
            for start in range(0, len(frames), together):
                pass_of = frames[start : start + together]
                features = [torch.randn(2, 4, 4, 8).bfloat16() for _ in pass_of]
                seen.extend(map(weakref.ref, features))
                most = max(most, sum(f() is not None for f in seen))
                for one in features:
                    yield View({"value": one}, layout)
                del one, features

    frames = [None] * 18
    clip = Clip("clip", "clip", tuple(frames), tuple([mask] * 18), 24.0)
    TASKS["temporal_correspondence"].run(clip, Clips(), None)
    assert most == CLIP_FRAMES + together


def test_weights_are_what_a_loaded_model_holds(checkpoint) -> None:
    folder = str(checkpoint("llava_wide"))
    mlm = load_mlm(folder)
    planned = weight_bytes(skeleton(mlm.config, name="x", dtype=torch.float32))
    assert planned.plain == sum(x.nbytes for x in (*mlm.base.parameters(), *mlm.base.buffers()))
    mlm = load_mlm(folder, quant="nf4", dtype=torch.float32)
    held = sum(x.nbytes for x in (*mlm.base.parameters(), *mlm.base.buffers()))
    for module in mlm.base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            parts = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            held += sum(x.nbytes for x in parts)
            whole = nf4_bytes(state.shape.numel())
            assert whole == module.weight.nbytes + sum(x.nbytes for x in parts)
    assert planned.nf4 == held
    assert planned.largest_unpacked == 4 * 64 * 128  # an MLP weight, float32


# --- the command ----------------------------------------------------------------------------------


def test_the_command_needs_no_weights(checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(
        checkpoint("qwen2_5_vl"), tmp_path / "m", ignore=lambda *_: ["model.safetensors"]
    )
    words = ("--image", "60x100", "--rank", "2", "--part", "lm", "--part", "projector", "--json")
    ended = call("plan", "--model", folder, "--gpus", "2", *words)
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert made["family"] == "qwen2_5_vl" and set(made["report"]["modules"]) == {"lm", "projector"}
    assert len(made["memory"]) == 14 and made["tokens"][0]["image_hw"] == [60, 100]
    assert all(m["total"] == m["weights"] + m["states"] + m["activations"] for m in made["memory"])
    for text in ("21 modules", "refused: nf4, ZeRO 3, offload all: parameter offload of nf4"):
        assert text in ended.err
    narrowed = call("plan", "--model", folder, "--zero", "2", "--no-nf4", "--image", "60x100")
    assert narrowed.code == 0 and narrowed.out == "" and "nf4 " not in narrowed.err.split("ZeRO")[1]


def test_the_command_reads_a_lone_config(checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text((checkpoint("llava_next") / "config.json").read_text())
    ended = call("plan", "--model", file, "--image", "60x100", "--json")
    assert ended.code == 0 and json.loads(ended.out)["family"] == "llava_next"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--nf4", "--zero", "3", "--dora"], 1, "found every asked one refused"),
        (["--model", "nowhere"], 1, "expected a folder or a hub id"),
        (["--only", "nothing"], 1, "expected modules of the lm to adapt, found none"),
        (["--part", "tower"], 1, "parts out of lm, projector, vision"),
        (["--max-pixels", "99"], 1, "expected no pixel limits for llava_onevision"),
        (["--image", "480"], 2, "expected HEIGHTxWIDTH"),
        (["--zero", "4"], 2, "less than or equal to 3"),
    ],
)
def test_what_the_command_refuses(words: list[str], code: int, says: str) -> None:
    ended = call("plan", *words)
    assert ended.code == code
    assert says in " ".join(ended.err.replace("│", " ").split()) and "Traceback" not in ended.err


def test_what_no_plan_is_made_for(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, says in (
        ("{", "expected JSON"),
        ('{"model_type": "llama"}', "expected model_type to be one of"),
        (
            '{"model_type": "llava_next", "text_config": {"model_type": "bloom"}}',
            "a language model",
        ),
    ):
        file.write_text(text)
        ended = call("plan", "--model", file)
        assert ended.code == 1 and says in ended.error
    for wrong, says in (
        ({"gpus": 0}, "gpus of at least 1"),
        ({"logit_rows": 65}, "at most as many logit rows as text tokens"),
        ({"images": ()}, "at least 1 x 1 pixel"),
    ):
        with pytest.raises(ValueError, match=says):
            PlanOptions(**wrong)
