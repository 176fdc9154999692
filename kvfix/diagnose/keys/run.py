"""`kvfix diagnose --only keys`: which image keys depend on no image, and what they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kvfix.data.left_out import naming, too_many
from kvfix.data.units import Episode, Question, UnitSet
from kvfix.diagnose.keys.artifacts import KeyDiagnosis
from kvfix.diagnose.keys.artifacts import diagnose_keys as find_keys
from kvfix.diagnose.keys.blocking import (
    CONDITIONS,
    answer_effects,
    effect_record,
    on_grid,
    probe_effects,
)
from kvfix.diagnose.keys.calibration import lowest_keys
from kvfix.diagnose.keys.findings import effect_finding, key_findings, key_results
from kvfix.diagnose.keys.statistics import BadKeys, to_square
from kvfix.diagnose.keys.values import score_cells, squared
from kvfix.eval.mcq.prompt import McqProtocol
from kvfix.eval.mcq.run import questions_in_turn
from kvfix.mlm.load import Mlm
from kvfix.ranks import agreed, check_alike
from kvfix.report.pictures.overlays import heat_overlay
from kvfix.runs.recorder import Listing, left_out_entry
from kvfix.session import Part, Watch

FEWEST_IMAGES, MOST_IMAGES = 64, 96
MOST_SIDE = 448  # pixels of a square: photos need no more to show what a key depends on
EPISODES = 16  # for the values at chosen keys, and for probes under blocking
QUESTIONS = 48  # for answers under blocking
LOWEST = 0.05  # share of keys that is blocked where none is agnostic


class Shown(NamedTuple):
    """An image and the unit that it comes from."""

    image: Image.Image
    cluster: str
    units: UnitSet
    unit: str  # its id


class Taken(NamedTuple):
    """A unit and the set that it comes from."""

    unit: Any
    units: UnitSet


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

    Questions are answered with keys blocked, at most `QUESTIONS` of them, or the `limit` below.
    """
    part = Part()
    shown, listing = _images(probes)
    part.left_out, part.failed = listing.left_out, listing.too_many_left_out
    if len(shown) < FEWEST_IMAGES:
        why = f"expected at least {FEWEST_IMAGES} images to compare, found {len(shown)}"
        part.entries["keys"] = {"skipped": f"{why}; raise --limit or give more data"}
        part.notes.append(f"Image keys: not measured, {part.entries['keys']['skipped']}")
        return part
    side = min(MOST_SIDE, *(min(s.image.size) for s in shown))
    dataset = " + ".join(dict.fromkeys(u.dataset for u in probes))
    found = _find(shown, part, mlm, side, dataset, seed, watch)
    chosen_LHP, name = _chosen(found)
    episodes = _episodes(probes, side, part)
    values = None
    if episodes:
        with watch.phase("values at those keys", len(episodes)) as tick:
            values = score_cells(
                mlm,
                [taken.unit for taken in episodes],
                chosen_LHP,
                side=side,
                seed=seed,
                chosen=name,
                tick=lambda: tick("values"),
            )
        _list(values.left_out, episodes, part)
    most = QUESTIONS if limit is None else min(limit, QUESTIONS)
    asked, skipped = _askable(questions, mlm, found.grid_hw, protocol, most, part)
    if skipped and not asked:
        part.notes.append(
            f"Keys blocked for the text: not measured, none of {skipped} questions lies on the "
            "keys' grid (several images in one prompt have another than one alone)"
        )
    effects = _effects(found, chosen_LHP, name, episodes, asked, mlm, protocol, seed, watch, part)
    for record in effects:
        record["skipped"] += skipped if record["queries"] == "text" else 0
    part.results = key_results(found)
    part.findings = key_findings(found, values, seed=seed)
    part.findings += [effect_finding(e, dataset=dataset) for e in effects]
    part.overlays = agreed(lambda: _maps(found, to_square(shown[0].image, side), folder))
    part.entries["keys"] = _record(found, side, name, effects)
    return part


def _find(
    shown: list[Shown],
    part: Part,
    mlm: Mlm,
    side: int,
    dataset: str,
    seed: int,
    watch: Watch,
) -> KeyDiagnosis:
    """The keys of the images; one whose keys are not finite goes from `shown` to `part`."""
    n, bad = len(shown), 0
    while True:
        try:
            with watch.phase("image keys", len(shown)) as tick:
                return find_keys(
                    mlm,
                    [to_square(s.image, side) for s in shown],
                    seed=seed,
                    dataset=dataset,
                    clusters=[s.cluster for s in shown],
                    tick=lambda: tick("image keys"),
                )
        except BadKeys as error:
            bad += 1
            if too_many(bad, n):
                raise
            gone = shown.pop(error.number)
            part.left_out.append(left_out_entry(gone.units, gone.unit, str(error)))


def _list(left_out: dict[str, str], among: Sequence[Taken], part: Part) -> None:
    """Add units that a measurement left out to the record."""
    part.left_out += [
        left_out_entry(taken.units, taken.unit.id, left_out[taken.unit.id])
        for taken in among
        if taken.unit.id in left_out
    ]
    part.failed |= too_many(len(left_out), len(among))


def _images(probes: Sequence[UnitSet]) -> tuple[list[Shown], Listing]:
    """Images of different units first, one a unit; more of each only if those are too few."""
    first: list[Shown] = []
    more: list[Shown] = []
    listing = Listing(sum(map(len, probes)))
    for i in range(max((len(u) for u in probes), default=0)):
        for units in probes:
            if i >= len(units) or len(first) >= MOST_IMAGES:
                continue
            found = listing.unit(units, units.ids[i], partial(_shown, units, i))
            if found is not None:
                head, *rest = found
                first.append(head)
                more += rest[: max(0, MOST_IMAGES - len(more))]
    shown = (first + more)[: max(len(first), FEWEST_IMAGES)]
    check_alike("images", [(s.unit, s.image.size) for s in shown])
    return shown, listing


def _shown(units: UnitSet, index: int) -> list[Shown]:
    unit = units.load(index)
    cluster = f"{units.dataset}/{unit.cluster}"
    return [Shown(image, cluster, units, unit.id) for image in _of_unit(unit)]


def _of_unit(unit: Any) -> Iterator[Image.Image]:
    """A unit's images, the one that is scored first."""
    for field in ("image", "query", "source", "target"):
        if hasattr(unit, field):
            yield getattr(unit, field)
    for field in ("images", "support", "frames"):
        if hasattr(unit, field):
            yield from getattr(unit, field)


def _read(listing: Listing, taken: Sequence[Taken], what: str, part: Part) -> None:
    """Add what could not be read to the record; every rank has read the same."""
    check_alike(what, [t.unit.id for t in taken])
    part.left_out += listing.left_out
    part.failed |= listing.too_many_left_out


def _chosen(found: KeyDiagnosis) -> tuple[np.ndarray, str]:
    """The keys to look closer at, and what they are."""
    if found.agnostic_LHP.any() and not found.agnostic_LHP.all():
        return found.agnostic_LHP, "input-agnostic keys"
    return lowest_keys(found.r_LHP, LOWEST), f"the {100 * LOWEST:.0f} % of keys with the lowest r"


def _episodes(probes: Sequence[UnitSet], side: int, part: Part) -> list[Taken]:
    """The first few-shot episodes, cut to squares."""
    episodes: list[Taken] = []
    few_shot = [u.head(EPISODES) for u in probes if u.task == "foreground_segmentation"]
    listing = Listing(sum(map(len, few_shot)))
    for units in few_shot:
        for i, name in enumerate(units.ids):
            unit = listing.unit(units, name, partial(_square_episode, units, i, side))
            if unit is not None:
                episodes.append(Taken(unit, units))
    _read(listing, episodes, "episodes", part)
    return episodes[:EPISODES]


def _square_episode(units: UnitSet, index: int, side: int) -> Episode:
    unit = units.load(index)
    assert isinstance(unit, Episode), type(unit)
    return squared(unit, side)


def _effects(
    found: KeyDiagnosis,
    chosen_LHP: np.ndarray,
    name: str,
    episodes: Sequence[Taken],
    asked: Sequence[Taken],
    mlm: Mlm,
    protocol: McqProtocol,
    seed: int,
    watch: Watch,
    part: Part,
) -> list[dict[str, Any]]:
    """Records of blocking the chosen keys for the text, then for later image tokens."""
    cells = torch.from_numpy(chosen_LHP).unflatten(-1, found.grid_hw)
    total = len(CONDITIONS) * (len(asked) + len(episodes))
    records = []
    with watch.phase("blocking keys", total) as tick:
        if asked:
            several = [taken.unit for taken in asked]
            answers = answer_effects(
                mlm, several, cells, protocol, seed=seed, tick=lambda: tick("answers")
            )
            _list(answers[0].left_out, asked, part)
            for effects in answers:
                if effects.clusters:
                    records.append(effect_record(effects, queries="text", chosen=name, seed=seed))
        if episodes:
            several = [taken.unit for taken in episodes]
            last = mlm.n_layers - 1
            probe = probe_effects(
                mlm, several, cells, layer=last, seed=seed, tick=lambda: tick("probes")
            )
            _list(probe.left_out, episodes, part)
            if probe.clusters:
                records.append(effect_record(probe, queries="image", chosen=name, seed=seed))
    return records


def _askable(
    questions: Sequence[UnitSet],
    mlm: Mlm,
    grid_hw: tuple[int, int],
    protocol: McqProtocol,
    most: int,
    part: Part,
) -> tuple[list[Taken], int]:
    """Questions whose images lie on the keys' grid, and how many were looked at in vain."""
    asked: list[Taken] = []
    skipped = 0
    listing = Listing(sum(map(len, questions)))

    def fits(units: UnitSet, index: int) -> tuple[Question, bool]:
        question = units.question(index)
        with naming(question.images):
            return question, on_grid(mlm, question, grid_hw, protocol)

    for units, i in ((u, i) for u in questions for i in questions_in_turn(u)):
        if len(asked) == most:
            break
        found = listing.unit(units, units.ids[i], partial(fits, units, i))
        if found is not None and found[1]:
            asked.append(Taken(found[0], units))
        elif found is not None:
            skipped += 1
    _read(listing, asked, "questions", part)
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
