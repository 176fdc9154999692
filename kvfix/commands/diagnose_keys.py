"""`kvfix diagnose --only keys`: which image keys depend on no image, and what they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.commands.session import Part, Watch
from kvfix.data.units import BadUnit, Episode, Question, UnitSet
from kvfix.diagnose.artifacts import KeyDiagnosis, key_results
from kvfix.diagnose.artifacts import diagnose_keys as find_keys
from kvfix.diagnose.blocking import (
    CONDITIONS,
    answer_effects,
    effect_finding,
    effect_record,
    on_grid,
    probe_effects,
)
from kvfix.diagnose.key_calibration import lowest_keys
from kvfix.diagnose.key_findings import key_findings
from kvfix.diagnose.key_statistics import to_square
from kvfix.diagnose.key_values import score_cells, squared
from kvfix.eval.blink import McqProtocol
from kvfix.eval.questions import in_turn
from kvfix.models import Mlm
from kvfix.report.overlays import heat_overlay

FEWEST_IMAGES, MOST_IMAGES = 64, 96
MOST_SIDE = 448  # pixels of a square: photos need no more to show what a key depends on
EPISODES = 16  # for the values at chosen keys, and for probes under blocking
QUESTIONS = 48  # for answers under blocking
LOWEST = 0.05  # share of keys that is blocked where none is agnostic


class Shown(NamedTuple):
    """An image and the cluster of the unit that it comes from."""

    image: Image.Image
    cluster: str


def diagnose_keys(
    probes: Sequence[UnitSet],
    questions: Sequence[UnitSet],
    mlm: Mlm,
    folder: Path,
    protocol: McqProtocol,
    *,
    limit: int | None,
    seed: int,
    watch: Watch,
) -> Part:
    """Find agnostic keys on the run's images, probe the values there, block them.

    Args:
        probes: units whose images are looked at.
        questions: to be answered with keys blocked.
        mlm: the model.
        folder: the run folder, for pictures.
        protocol: how questions are asked.
        limit: questions that are blocked at most, where it is below `QUESTIONS`.
        seed: of shuffles and random keys.
        watch: told how far it is.
    """
    part = Part()
    shown = _images(probes)
    if len(shown) < FEWEST_IMAGES:
        why = f"expected at least {FEWEST_IMAGES} images to compare, found {len(shown)}"
        part.entries["keys"] = {"skipped": f"{why}; raise --limit or give more data"}
        part.notes.append(f"Image keys: not measured, {part.entries['keys']['skipped']}")
        return part
    side = min(MOST_SIDE, *(min(s.image.size) for s in shown))
    squares = [to_square(s.image, side) for s in shown]
    dataset = " + ".join(dict.fromkeys(u.dataset for u in probes))
    with watch.phase("image keys", len(squares)) as tick:
        found = find_keys(
            mlm,
            squares,
            seed=seed,
            dataset=dataset,
            clusters=[s.cluster for s in shown],
            tick=lambda: tick("image keys"),
        )
    chosen_LHP, name = _chosen(found)
    episodes = _episodes(probes, side)
    values = None
    if episodes:
        with watch.phase("values at those keys", len(episodes)) as tick:
            values = score_cells(
                mlm,
                episodes,
                chosen_LHP,
                side=side,
                seed=seed,
                chosen=name,
                tick=lambda: tick("values"),
            )
    most = QUESTIONS if limit is None else min(limit, QUESTIONS)
    asked, skipped = _askable(questions, mlm, found.grid_hw, protocol, most)
    if skipped and not asked:
        part.notes.append(
            f"Keys blocked for the text: not measured, none of {skipped} questions lies on the "
            "keys' grid (several images in one prompt have another than one alone)"
        )
    effects = _effects(found, chosen_LHP, name, episodes, asked, mlm, protocol, seed, watch)
    for record in effects:
        record["skipped"] += skipped if record["queries"] == "text" else 0
    part.results = key_results(found)
    part.findings = key_findings(found, values, seed=seed)
    part.findings += [effect_finding(e, dataset=dataset) for e in effects]
    part.overlays = _maps(found, squares[0], folder)
    part.entries["keys"] = _record(found, side, name, effects)
    return part


def _images(probes: Sequence[UnitSet]) -> list[Shown]:
    """Images of different units first, one a unit; more of each only if those are too few."""
    first: list[Shown] = []
    more: list[Shown] = []
    for i in range(max((len(u) for u in probes), default=0)):
        for units in probes:
            if i >= len(units) or len(first) >= MOST_IMAGES:
                continue
            try:
                unit = units.load(i)
                head, *rest = _of_unit(unit)
            except BadUnit:
                continue  # reported by the probes
            cluster = f"{units.dataset}/{unit.cluster}"
            first.append(Shown(head, cluster))
            more += [Shown(image, cluster) for image in rest if len(more) < MOST_IMAGES]
    return (first + more)[: max(len(first), FEWEST_IMAGES)]


def _of_unit(unit: Any) -> Iterator[Image.Image]:
    """A unit's images, the one that is scored first."""
    for field in ("image", "query", "source", "target"):
        if hasattr(unit, field):
            yield getattr(unit, field)
    for field in ("images", "support", "frames"):
        if hasattr(unit, field):
            yield from getattr(unit, field)


def _chosen(found: KeyDiagnosis) -> tuple[np.ndarray, str]:
    """The keys to look closer at, and what they are."""
    if found.agnostic_LHP.any() and not found.agnostic_LHP.all():
        return found.agnostic_LHP, "input-agnostic keys"
    return lowest_keys(found.r_LHP, LOWEST), f"the {100 * LOWEST:.0f} % of keys with the lowest r"


def _episodes(probes: Sequence[UnitSet], side: int) -> list[Episode]:
    """The first few-shot episodes, cut to squares."""
    episodes: list[Episode] = []
    for units in probes:
        if units.task == "foreground_segmentation":
            for i in range(min(len(units), EPISODES)):
                try:
                    unit = units.load(i)
                except BadUnit:
                    continue  # reported by the probes
                assert isinstance(unit, Episode), type(unit)
                episodes.append(squared(unit, side))
    return episodes[:EPISODES]


def _effects(
    found: KeyDiagnosis,
    chosen_LHP: np.ndarray,
    name: str,
    episodes: Sequence[Episode],
    asked: Sequence[Question],
    mlm: Mlm,
    protocol: McqProtocol,
    seed: int,
    watch: Watch,
) -> list[dict[str, Any]]:
    """Records of blocking the chosen keys for the text, then for later image tokens."""
    cells = torch.from_numpy(chosen_LHP).unflatten(-1, found.grid_hw)
    total = len(CONDITIONS) * (len(asked) + len(episodes))
    records = []
    with watch.phase("blocking keys", total) as tick:
        if asked:
            for effects in answer_effects(
                mlm, asked, cells, protocol, seed=seed, tick=lambda: tick("answers")
            ):
                records.append(effect_record(effects, queries="text", chosen=name, seed=seed))
        if episodes:
            last = mlm.n_layers - 1
            probe = probe_effects(
                mlm, episodes, cells, layer=last, seed=seed, tick=lambda: tick("probes")
            )
            records.append(effect_record(probe, queries="image", chosen=name, seed=seed))
    return records


def _askable(
    questions: Sequence[UnitSet],
    mlm: Mlm,
    grid_hw: tuple[int, int],
    protocol: McqProtocol,
    most: int,
) -> tuple[list[Question], int]:
    """Questions whose images lie on the keys' grid, and how many were looked at in vain."""
    asked: list[Question] = []
    skipped = 0
    for units in questions:
        for i in in_turn(units):
            if len(asked) == most:
                return asked, skipped
            try:
                question = units.load(i)
            except BadUnit:
                continue  # reported where they are answered
            assert isinstance(question, Question), type(question)
            if on_grid(mlm, question, grid_hw, protocol):
                asked.append(question)
            else:
                skipped += 1
    return asked, skipped


def _maps(found: KeyDiagnosis, image: Image.Image, folder: Path) -> list[dict[str, Any]]:
    """Where agnostic keys lie, over one of the images: the layer with the most of them."""
    map_LHW = found.share_map()
    layer = int(map_LHW.mean((1, 2)).argmax())
    file = f"figures/overlays/image_keys.{layer}.png"
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    heat_overlay(image, map_LHW[layer]).save(path)
    return [
        {
            "task": "image_keys",
            "dataset": found.dataset,
            "site": "key",
            "layer": layer,
            "id": "first image",
            "score": float(map_LHW[layer].mean()),
            "file": file,
            "caption": "share of KV heads whose key at a place is input-agnostic: blue none, "
            "yellow all",
        }
    ]


def _record(
    found: KeyDiagnosis, side: int, name: str, effects: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "n": found.n,
        "side": side,
        "grid": list(found.grid_hw),
        "tau": found.calibration.tau,
        "alpha": found.alpha,
        "null_fpr": None if np.isnan(found.calibration.null_fpr) else found.calibration.null_fpr,
        "share_by_layer": found.agnostic_LHP.mean((1, 2)).tolist(),
        "share_by_layer_and_head": found.agnostic_LHP.mean(2).tolist(),
        "map_by_layer": np.round(found.share_map(), 4).tolist(),
        "split_from": found.split_from,
        "sinks_by_layer": found.sinks.rate_LP.mean(1).tolist(),
        "blocked": name,
        "blocking": effects,
    }
