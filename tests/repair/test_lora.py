"""LoRA: what is matched, frozen, grouped, saved, loaded and merged, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import bitsandbytes as bnb
import pytest
import steps
import tiny
import torch
from lora_fits import PARTS, logits, train
from torch import nn

from kvfix.mlm.load import Mlm, load_mlm
from kvfix.repair.lora import (
    LoraOptions,
    Rates,
    attach,
    match_modules,
    merge,
    parameter_groups,
)
from kvfix.repair.quant import STAGES, Setup, check_setup, refusal
from kvfix.repair.terms.heads import check_trained
from kvfix.repair.terms.losses import Heads, Losses
from kvfix.repair.terms.mask import MaskTerm


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_each_part_is_matched_apart_and_named(name, load) -> None:
    row = load(name).family
    paths = {"lm": row.lm, "projector": row.projector, "vision": row.vision}
    for parts in (("lm",), ("projector",), ("vision",), PARTS):
        mlm, report = attach(load(name), LoraOptions(parts=parts, rank=2))
        assert tuple(report.modules) == parts
        for part, names in report.modules.items():
            assert names and all(module.startswith(paths[part] + ".") for module in names)
        wrapped = {
            module.removeprefix("base_model.model.").removesuffix(".lora_A")
            for module, _ in mlm.model.named_modules()
            if module.endswith(".lora_A")
        }
        assert wrapped == {module for names in report.modules.values() for module in names}
        trainable = {n: p for n, p in mlm.model.named_parameters() if p.requires_grad}
        assert all(".lora_" in n for n in trainable)
        count = sum(p.numel() for p in trainable.values())
        total = sum(p.numel() for p in mlm.model.parameters())
        assert sum(report.trainable.values()) == count and report.total == total
        assert report.share == count / total
        lines = report.lines()
        assert len(lines) == len(parts) + 1 and f"{count:,} of {total:,}" in lines[-1]
        assert f"{len(report.modules[parts[0]])} modules" in lines[0]
    assert len(match_modules(load(name), LoraOptions())["lm"]) == 3 * 7


def test_parts_have_the_options_of_peft(load) -> None:
    options = LoraOptions(rank=4, alpha=6.0, dropout=0.25, rslora=True, dora=True)
    mlm, _ = attach(load("llava"), options)
    layer = mlm.layer(0).self_attn.v_proj
    assert layer.scaling["default"] == pytest.approx(6 / 2) and layer.r["default"] == 4
    assert layer.lora_dropout["default"].p == 0.25 and layer.use_dora["default"]
    plain, _ = attach(load("llava"), LoraOptions(rank=4, alpha=6.0))
    assert plain.layer(0).self_attn.v_proj.scaling["default"] == pytest.approx(6 / 4)


def test_only_narrows_and_nothing_left_is_an_error(load) -> None:
    mlm = load("qwen2_5_vl")
    found = match_modules(mlm, LoraOptions(only=r".*layers\.[12]\..*[kv]_proj"))["lm"]
    assert len(found) == 4 and all(
        re.search(r"layers\.[12]\.self_attn\.[kv]_proj$", n) for n in found
    )
    _, report = attach(load("qwen2_5_vl"), LoraOptions(only=r".*layers\.[12]\..*[kv]_proj"))
    assert report.modules["lm"] == found
    for options in (
        LoraOptions(only=r"layers\.1\..*"),  # full names: anchored at both ends
        LoraOptions(only=r".*v_pro"),
        LoraOptions(parts=("lm", "projector"), only=r".*v_proj"),
    ):
        with pytest.raises(ValueError, match=r"expected modules of the (lm|projector) to adapt"):
            attach(mlm, options)
    assert not any("lora" in name for name, _ in mlm.base.named_modules())


def test_a_fresh_adapter_changes_nothing_and_the_seed_decides_it(load) -> None:
    before = logits(load("llava_next"))
    state = torch.get_rng_state()
    one, other, third = (attach(load("llava_next"), LoraOptions(), seed=n).mlm for n in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(one), before)
    weights = [m.layer(1).self_attn.q_proj.lora_A.default.weight for m in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_wrong_options_are_refused(load) -> None:
    for wrong, says in (
        (
            {"parts": ("tower",)},
            r"parts out of lm, projector, vision, each once, found \['tower'\]",
        ),
        ({"parts": ()}, r"found \[\]"),
        ({"parts": ("lm", "lm")}, "each once"),
        ({"rank": 0}, "rank: expected a whole number of 1 or more"),
        ({"dropout": 1.0}, "dropout: expected a number of 0 or more and below 1"),
        ({"only": "("}, "only: expected a regex"),
    ):
        with pytest.raises(ValueError, match=says):
            LoraOptions(**wrong)
    mlm, _ = attach(load("llava"), LoraOptions())
    with pytest.raises(ValueError, match="expected a model without an adapter, found one"):
        attach(mlm, LoraOptions())
    with pytest.raises(ValueError, match="expected a model with an adapter to merge"):
        merge(load("llava"))


def _frozen_bits(mlm: Mlm) -> dict[str, torch.Tensor]:
    """Copies of all frozen weights and buffers as bytes: nf4 codes read as floats hold NaNs."""
    named = [*mlm.model.named_parameters(), *mlm.model.named_buffers()]
    return {
        n: x.detach().contiguous().flatten().view(torch.uint8).clone()
        for n, x in named
        if not x.requires_grad
    }


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_frozen_weights_stay_and_the_effect_survives_save_load_merge(
    name, dora, load, tmp_path: Path
) -> None:
    mlm, report = attach(load(name), LoraOptions(parts=PARTS, rank=2, dora=dora))
    before = logits(mlm)
    frozen = _frozen_bits(mlm)
    assert all(".lora_" not in n for n in frozen)
    train(mlm, parameter_groups(mlm, report, Rates(lm=1e-2, projector=1e-2, vision=1e-2)))
    now = _frozen_bits(mlm)
    assert now.keys() == frozen.keys()
    assert all(torch.equal(now[n], was) for n, was in frozen.items())
    trained = {n: p for n, p in mlm.model.named_parameters() if p.requires_grad}
    assert all(p.any() for n, p in trained.items() if "lora_B" in n)
    after = logits(mlm)
    assert (after - before).abs().max() > 0.05
    mlm.model.save_pretrained(tmp_path)
    loaded = load(name, adapter=str(tmp_path))
    torch.testing.assert_close(logits(loaded), after, atol=1e-5, rtol=0)
    merged = merge(loaded)
    assert not any("lora" in n for n, _ in merged.model.named_modules())
    assert merged.adapter is None
    torch.testing.assert_close(logits(merged), after, atol=1e-4, rtol=0)
    merged.model.save_pretrained(tmp_path / "merged")
    merged.processor.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load_mlm(str(tmp_path / "merged"))), after, atol=1e-4, rtol=0)


def test_groups_hold_each_parameter_once_under_its_own_rate(load) -> None:
    mlm, report = attach(load("qwen2_5_vl"), LoraOptions(parts=PARTS, rank=2))
    losses = Losses(mask=MaskTerm(weight=1.0, layers=(1,)))
    heads = Heads(losses, channels=mlm.n_kv_heads * mlm.head_dim, seed=0)
    rates = Rates(lm=1.0, projector=2.0, vision=3.0, heads=4.0, weight_decay=0.5)
    groups = parameter_groups(mlm, report, rates, heads=heads)
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "lm": (1.0, 0.0),
        "projector": (2.0, 0.0),
        "vision": (3.0, 0.0),
        "heads": (4.0, 0.5),
    }
    held = [id(p) for g in groups for p in g["params"]]
    everything = [p for m in (mlm.model, heads) for p in m.parameters() if p.requires_grad]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in everything}
    merger = {id(p) for n, p in mlm.model.named_parameters() if "visual.merger" in n}
    by_name = {g["name"]: {id(p) for p in g["params"]} for g in groups}
    assert by_name["projector"] <= merger and not by_name["vision"] & merger
    check_trained(heads, groups)
    with pytest.raises(ValueError, match="found it in no group"):
        check_trained(heads, parameter_groups(mlm, report, rates))
    mlm.model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"only the adapter to be trainable, found .*lm_head"):
        parameter_groups(mlm, report, rates)


def test_heads_before_the_adapter_are_frozen_by_peft_and_caught(load) -> None:
    """Why the order is fixed: `get_peft_model` freezes what hangs on the model already."""
    mlm = load("llava")
    mlm.base.head = nn.Linear(2, 2)
    attach(mlm, LoraOptions())
    everything = [{"params": list(mlm.base.parameters())}]
    with pytest.raises(ValueError, match="found it frozen; make heads after the adapter"):
        check_trained(mlm.base.head, everything)


# --- quantised bases ------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_nf4_trains_its_adapter_only(dora, load, tmp_path: Path) -> None:
    mlm = load("llava_wide", quant="nf4", dtype=torch.float32)
    tuned, report = attach(mlm, LoraOptions(rank=2, dora=dora))
    full = attach(load("llava_wide"), LoraOptions(rank=2, dora=dora)).report
    assert report.trainable == full.trainable and report.total == full.total
    before = logits(tuned)
    frozen = _frozen_bits(tuned)
    train(tuned, parameter_groups(tuned, report, Rates(lm=1e-2)))
    now = _frozen_bits(tuned)
    assert all(torch.equal(now[n], was) for n, was in frozen.items())
    after = logits(tuned)
    assert (after - before).abs().max() > 0.05
    tuned.model.save_pretrained(tmp_path)
    again = load("llava_wide", quant="nf4", dtype=torch.float32, adapter=str(tmp_path))
    torch.testing.assert_close(logits(again), after, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="expected an unquantised base to merge into"):
        merge(again)


def test_gradients_through_nf4_are_right_also_after_an_evaluation(load) -> None:
    """Against a model whose plain weights are the dequantised ones."""
    grads = []
    for quant in ("nf4", None):
        source = load("llava_wide", quant="nf4", dtype=torch.float32)
        mlm = source if quant else load("llava_wide")
        if quant is None:
            for name, module in source.base.named_modules():
                if isinstance(module, bnb.nn.Linear4bit):
                    state = module.weight.quant_state
                    plain = bnb.functional.dequantize_4bit(module.weight.data, state)
                    mlm.base.get_submodule(name).weight.data.copy_(plain)
        mlm, _ = attach(mlm, LoraOptions(rank=2))
        for name, parameter in mlm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.05)
        logits(mlm)  # an evaluation: eval mode, no gradients
        mlm.model.train()
        encoded = mlm.encode(steps.prompts())
        mlm.model(**encoded.inputs, labels=encoded.inputs["input_ids"]).loss.backward()
        grads.append({n: p.grad for n, p in mlm.model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-3)


def every_setup() -> list[tuple[Setup, str | None]]:
    """Every combination of quantisation, stage, offload and DoRA, with its refusal."""
    bf16 = torch.bfloat16
    rows = [
        Setup(quant, zero, offload, dora, bf16 if quant == "nf4" else None, bf16)
        for quant in (None, "nf4", "int8")
        for zero in STAGES
        for offload in (False, True)
        for dora in (False, True)
    ]
    return [(row, refusal(row)) for row in rows]


def test_the_matrix_of_what_combines() -> None:
    allowed = {
        (s.quant, s.zero, s.offload_params, s.dora) for s, why in every_setup() if why is None
    }
    stages = {(None, z, False, d) for z in (0, 1, 2, 3) for d in (False, True)}
    stages |= {(None, 3, True, False), (None, 3, True, True)}
    stages |= {("nf4", z, False, False) for z in (0, 1, 2, 3)}
    stages |= {("nf4", z, False, True) for z in (0, 1, 2)}
    assert allowed == stages
    refused = [why for _, why in every_setup() if why is not None]
    assert all("\n" not in why and len(why) < 120 for why in refused)
    for setup, says in (
        (Setup("int8"), "int8 is for diagnosis only"),
        (Setup("nf4", 3, dora=True), "DoRA on nf4 weights does not combine with ZeRO stage 3"),
        (Setup(offload_params=True, zero=2), "parameter offload needs ZeRO stage 3"),
        (Setup(zero=4), "ZeRO stage 0, 1, 2 or 3, found 4"),
        (
            Setup("nf4", 3, storage=torch.uint8, compute=torch.bfloat16),
            "bnb_4bit_quant_storage equal to the compute type torch.bfloat16, found torch.uint8",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            check_setup(setup)
    assert refusal(Setup()) is None


def test_attach_refuses_what_cannot_be_trained(load) -> None:
    with pytest.raises(ValueError, match="int8 is for diagnosis only"):
        attach(load("llava_wide", quant="int8"), LoraOptions())
    mlm = load("llava_wide", quant="nf4", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="DoRA on nf4 weights does not combine"):
        attach(mlm, LoraOptions(dora=True), zero=3)
    attach(mlm, LoraOptions(), zero=3)  # load_mlm keeps nf4 weights in the compute type
