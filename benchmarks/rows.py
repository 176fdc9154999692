"""The rows of the table: what is measured, beside what, with which goal."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import mcq
from benchmarks.peers import NotInstalled, Peer
from benchmarks.turns import Line, alone, line, take_turns
from kvfix.data.catalog import load_units
from kvfix.data.scenes.paint import generator, render, sample_scene
from kvfix.data.units import MCQ
from kvfix.eval.grid import to_grid, to_pixels
from kvfix.eval.mcq.answer import McqProtocol, answer
from kvfix.eval.metrics import overlap
from kvfix.eval.probes.correspondence import object_shares
from kvfix.eval.probes.kmeans import grow_kmeans
from kvfix.eval.probes.logistic import fit_logistic, fit_standardiser
from kvfix.eval.probes.propagation import Propagator, scaled_window
from kvfix.eval.source import NEUTRAL, MlmSource
from kvfix.eval.stats.bootstrap import paired_bootstrap
from kvfix.eval.suite import run_task
from kvfix.mlm.capture import SITES, Capture
from kvfix.mlm.load import Mlm, Prompt, load_mlm
from kvfix.shipped import nano_dir


def measure(name: str, rounds: int) -> list[Line]:
    """The lines of one row."""
    torch.set_num_threads(1)
    rows: dict[str, Callable[[int], list[Line]]] = {
        "capture": capture,
        "segmentation": segmentation,
        "kmeans": kmeans,
        "propagation": propagation,
        "mcq": multiple_choice,
        "bootstrap": bootstrap,
        "growth": growth,
    }
    return rows[name](rounds)


def _nano() -> Mlm:
    return load_mlm(str(nano_dir()), dtype=torch.float32)


def _first(task: str):
    [units] = load_units(("scenes",), tasks=[task], limit=1)
    return units.load(0)


def capture(rounds: int) -> list[Line]:
    """All sites of all layers beside a plain pass, and beside hidden states projected again."""
    mlm = _nano()
    images = [render(sample_scene(generator("test", i, "bench"))).image for i in range(8)]
    encoded = mlm.encode([Prompt((image,), NEUTRAL) for image in images])
    layers = mlm.base.model.language_model.layers

    @torch.inference_mode()
    def captured() -> None:
        with Capture(mlm, encoded, sites=SITES) as cap:
            mlm.base.model(**encoded.inputs, use_cache=False)
            cap.collect()

    @torch.inference_mode()
    def plain() -> None:
        mlm.base.model(**encoded.inputs, use_cache=False)

    @torch.inference_mode()
    def projected_again() -> None:
        out = mlm.base.model(**encoded.inputs, use_cache=False, output_hidden_states=True)
        for layer, hidden in zip(layers, out.hidden_states, strict=False):
            normed = layer.input_layernorm(hidden)
            layer.self_attn.k_proj(normed), layer.self_attn.v_proj(normed)

    again = "output_hidden_states, keys and values again"
    ways = {"kvfix": captured, "a plain pass": plain, again: projected_again}
    seconds = take_turns(ways, 3 * rounds)
    what = "capture of every layer"
    return [
        line(what, seconds, "kvfix", "a plain pass", goal="cost <= 1.05x", cost=True),
        line(what, seconds, "kvfix", again, goal="faster"),
    ]


def segmentation(rounds: int) -> list[Line]:
    """The few-shot probe of all value layers beside scikit-learn, layer by layer."""
    unit = _first("foreground_segmentation")
    *support, query = MlmSource(_nano()).views([*unit.support, unit.query])
    x_SNC = torch.cat([view.features["value"].flatten(1, 2) for view in support], dim=1).float()
    query_SNC = query.features["value"].flatten(1, 2).float()
    grids = [to_grid(m, v.layout) for m, v in zip(unit.support_masks, support, strict=True)]
    share_N = torch.cat([grid.share_HW.flatten() for grid in grids])
    valid_N = torch.cat([grid.valid_HW.flatten() for grid in grids])
    found: list[torch.Tensor] = []

    def ours() -> None:
        standardise = fit_standardiser(x_SNC)
        fit = fit_logistic(standardise(x_SNC), share_N, weight_N=valid_N)
        logit_SN = torch.bmm(standardise(query_SNC), fit.weight_SC[..., None])[..., 0]
        found[:] = [logit_SN + fit.bias_S[:, None]]

    def iou(logit_SN: torch.Tensor) -> float:
        maps = to_pixels(logit_SN.view(-1, *query.layout.grid_hw), query.layout, outside=-1.0)
        counts = [overlap((m > 0).numpy(), unit.query_mask) for m in maps]
        return float(np.mean([c.inter / c.union for c in counts]))

    arrays = {"x": x_SNC, "query": query_SNC, "share": share_N, "valid": valid_N}
    given = {name: value.numpy() for name, value in arrays.items()}
    name = "few-shot segmentation, 8 layers"
    try:
        peer = Peer("scikit-learn", "sklearn_logistic.py", **given, l2=np.array(1e-3))
    except NotInstalled as error:
        return [alone(name, 0.0, goal="10x", beside=str(error))]
    with peer:
        seconds = take_turns({"kvfix": ours, "scikit-learn": peer}, rounds)
        theirs = iou(torch.tensor(peer.answer["logits"]))
    same = f"mIoU {iou(found[0]):.3f} and {theirs:.3f}"
    return [line(name, seconds, "kvfix", "scikit-learn", goal=">= 10x", agreement=same)]


def kmeans(rounds: int) -> list[Line]:
    """Growing k to 14 on the values of a group of images, 5 seeds, beside two libraries."""
    unit = _first("cosegmentation")
    views = list(MlmSource(_nano()).views(unit.images))
    x = torch.cat([view.features["value"].flatten(1, 2).float() for view in views], dim=1)
    x_SNC = functional.normalize(x, dim=2)
    found: list[float] = []

    def ours() -> None:
        draws = torch.Generator().manual_seed(0)
        got = grow_kmeans(x_SNC, restarts=5, generator=draws, elbow=1.0)
        found[:] = [float(got.objective_SR.mean())]

    lines = []
    given = {"x": x_SNC.numpy(), "max_k": np.array(14), "restarts": np.array(5)}
    for tool, script in (("scikit-learn", "sklearn_kmeans.py"), ("faiss-cpu", "faiss_kmeans.py")):
        name = "k-means, k = 1..14, 8 layers, 5 seeds"
        try:
            with Peer(tool, script, **given) as peer:
                seconds = take_turns({"kvfix": ours, tool: peer}, max(2, rounds // 2))
                same = f"objective {found[0]:.4f} and {peer.answer['objective']:.4f}"
            lines.append(line(name, seconds, "kvfix", tool, goal=">= 5x", agreement=same))
        except NotInstalled as error:
            lines.append(alone(name, 0.0, goal=">= 5x", beside=str(error)))
    return lines


def propagation(rounds: int) -> list[Line]:
    """Labels of a clip through all value layers at once, beside DINO's recipe layer by layer."""
    unit = _first("temporal_correspondence")
    views = list(MlmSource(_nano()).views(unit.frames[:-1]))
    frames = [view.features["value"].float() for view in views]
    mask = np.asarray(unit.masks[0])
    shares_LHW = object_shares(mask, views[0].layout, int(mask[mask < 255].max()))
    last: dict[str, torch.Tensor] = {}

    def ours() -> None:
        propagator = Propagator(frames[0], shares_LHW)
        for frame in frames[1:]:
            last["kvfix"] = propagator.step(frame)

    def by_layer() -> None:
        layers = range(len(frames[0]))
        last["DINO"] = torch.stack([_dino([f[s] for f in frames], shares_LHW) for s in layers])

    beside = "DINO's recipe, layer by layer"
    seconds = take_turns({"kvfix": ours, beside: by_layer}, rounds)
    same = f"labels within {float((last['kvfix'] - last['DINO']).abs().max()):.0e}"
    name = "label propagation, 8 layers"
    return [line(name, seconds, "kvfix", beside, goal=">= 5x", agreement=same)]


def _dino(frames_HWC: list[torch.Tensor], labels_LHW: torch.Tensor) -> torch.Tensor:
    """Caron et al. (2104.14294), video segmentation: one layer, one context frame at a time."""
    rows, cols, _ = frames_HWC[0].shape
    window = scaled_window((rows, cols))
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    far = (at[:, None] - at).abs() > torch.tensor([window.rows, window.columns])
    far_QP = far.any(2)
    unit = [functional.normalize(f.flatten(0, 1), dim=1) for f in frames_HWC]
    soft = [labels_LHW.flatten(1)]
    for t in range(1, len(unit)):
        context = [0, *range(max(1, t - 7), t)]
        affinity = torch.cat(
            [(unit[t] @ unit[c].T / 0.1).exp().masked_fill(far_QP, 0) for c in context], dim=1
        )
        least = affinity.topk(5, dim=1).values[:, -1:]
        affinity = affinity.masked_fill(affinity < least, 0)
        affinity = affinity / affinity.sum(1, keepdim=True)
        soft.append(torch.cat([soft[c] for c in context], dim=1) @ affinity.T)
    return soft[-1].view(-1, rows, cols)


def multiple_choice(rounds: int) -> list[Line]:
    """Letters and written answers of 16 questions, beside generating and scoring each option."""
    mlm, protocol = _nano(), McqProtocol()
    [units] = load_units(("scenes",), tasks=[MCQ], limit=16, questions=True)
    questions: list[Any] = [units.load(i) for i in range(len(units))]
    letters: dict[str, list[str]] = {}

    def ours() -> None:
        letters["kvfix"] = [a.logprob_letter for a in answer(mlm, questions, protocol)]

    def theirs() -> None:
        letters["plain"] = mcq.plain(mlm, questions, protocol)

    beside = "generate, and one pass an option"
    seconds = take_turns({"kvfix": ours, beside: theirs}, max(2, rounds // 2))
    equal = sum(a == b for a, b in zip(*letters.values(), strict=True))
    same = f"{equal}/{len(questions)} letters equal"
    name = f"multiple choice, {len(questions)} questions"
    return [line(name, seconds, "kvfix", beside, goal=">= 2x", agreement=same)]


def bootstrap(rounds: int) -> list[Line]:
    """10,000 paired resamples of 1,000 units in 250 clusters at 30 sites."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 1000, 30))
    clusters = [i // 4 for i in range(1000)]

    def run() -> None:
        paired_bootstrap(before, after, clusters)

    seconds = take_turns({"kvfix": run}, rounds)
    name = "10,000 paired resamples, 1,000 units, 30 sites"
    return [alone(name, statistics.median(seconds["kvfix"]), goal="< 1 s")]


def growth(rounds: int) -> list[Line]:
    """Time of 2, 8 and 32 units of one task: linear."""
    source = MlmSource(_nano())
    spent = {}
    for n in (1, 2, 8, 32):
        [units] = load_units(("scenes",), tasks=["semantic_correspondence"], limit=n)
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            run_task(units, source, Path(folder))
            spent[n] = time.process_time() - start
    each = [spent[n] / n for n in (2, 8, 32)]
    per_unit = ", ".join(f"{1e3 * e:.0f}" for e in each)
    name = "2, 8 and 32 units of correspondence, each"
    return [alone(name, each[-1], goal="linear within 10 %", agreement=f"{per_unit} ms a unit")]
