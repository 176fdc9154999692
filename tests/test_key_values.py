"""Values at chosen cells: planted harm is found with its sign, and none where none is planted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from key_plants import SIDE, cell_positions, hooked, no_keys, random_keys, tiny_mlm
from PIL import Image
from tiny import photo

from kvfix.data.units import Episode
from kvfix.diagnose.artifacts import KeyDiagnosis, diagnose_keys
from kvfix.diagnose.key_findings import key_findings
from kvfix.diagnose.key_values import GROUPS, CellScores, score_cells, squared
from kvfix.models import Mlm

EPISODES = 12


@pytest.fixture(scope="module")
def mlm(tmp_path_factory: pytest.TempPathFactory) -> Mlm:
    """Values of this one show the colour of their cell."""
    made = tiny_mlm("llava", tmp_path_factory.mktemp("tiny"))
    return made


def bright_square(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A bright square somewhere on a dark ground, and its mask; wider than high."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (SIDE, SIDE + 16, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE + 16), np.uint8)
    y, x = rng.integers(0, SIDE - 24, 2) // 8 * 8
    mask[y : y + 24, 8 + x : 8 + x + 24] = 1
    pixels[mask == 1] += 200
    return Image.fromarray(pixels), mask


def episode(index: int) -> Episode:
    drawn = [bright_square(10 * index + i) for i in range(6)]
    return Episode(
        f"e{index}",
        f"e{index}",
        tuple(i for i, _ in drawn[:5]),
        tuple(m for _, m in drawn[:5]),
        drawn[5][0],
        drawn[5][1],
        "square",
    )


def scores(mlm: Mlm, chosen: np.ndarray) -> CellScores:
    return score_cells(mlm, map(episode, range(EPISODES)), chosen, side=SIDE, seed=0)


def diagnosis(mlm: Mlm) -> KeyDiagnosis:
    return diagnose_keys(mlm, [photo(SIDE, SIDE, seed=i) for i in range(64)], seed=0)


def test_values_that_are_noise_at_chosen_keys_are_found_to_be_worse(mlm: Mlm) -> None:
    image = squared(episode(0), SIDE).query
    chosen = random_keys(no_keys(mlm, image).shape, 0.2, seed=0)
    chosen[1] = False  # a layer without any
    at, d = cell_positions(mlm, image), mlm.head_dim
    generator = torch.Generator().manual_seed(0)

    def noise(layer: int, out_BLC: torch.Tensor) -> torch.Tensor:
        out = out_BLC.clone()
        for head in range(mlm.n_kv_heads):
            cells = torch.from_numpy(np.flatnonzero(chosen[layer, head]))
            part = out[:, at[cells], head * d : (head + 1) * d]
            size = out_BLC.std() * torch.randn(part.shape, generator=generator)
            out[:, at[cells], head * d : (head + 1) * d] = size
        return out

    v_projs = [mlm.layer(i).self_attn.v_proj for i in range(mlm.n_layers)]
    with hooked(v_projs, noise):
        got = scores(mlm, chosen)
    assert got.ids == [f"e{i}" for i in range(EPISODES)]
    assert got.keys_L.tolist() == [chosen[0].sum(), 0, chosen[2].sum()]
    for group in GROUPS:
        assert got.added_NL[group].shape == (EPISODES, 3)
        assert np.isnan(got.accuracy_NL[group][:, 1]).all() == (group != "other")
    for against in ("other", "random"):
        for added in (True, False):
            change = got.difference(against, added=added).change
            assert change.high_S[0] < 0 and change.n_S[0] == EPISODES
    found = {f["id"]: f for f in key_findings(diagnosis(mlm), got)}
    for name, others in (("keys.values", "other keys"), ("keys.values_random", "random keys")):
        finding = found[name]
        assert finding["clear"] and finding["value"] < 0 and finding["n"] == EPISODES
        assert "less foreground accuracy a cell than at" in finding["text"]
        assert others in finding["text"] and "no clear" not in finding["text"]
        assert json.loads(json.dumps(finding, allow_nan=False)) == finding


def test_where_nothing_is_planted_the_chosen_cells_are_like_the_others(mlm: Mlm) -> None:
    image = squared(episode(0), SIDE).query
    clear = 0
    for seed in range(8):
        got = scores(mlm, random_keys(no_keys(mlm, image).shape, 0.2, seed=seed))
        change = got.difference("other").change
        clear += bool(change.low_S[0] > 0 or change.high_S[0] < 0)
        assert abs(change.value_S[0]) < 0.1
    assert clear <= 2  # 0.4 expected of 8
    assert "no clear difference" in "".join(f["text"] for f in key_findings(diagnosis(mlm), got))


def test_the_place_is_taken_off() -> None:
    """Corners are easy: plain accuracy calls them better, what the values add does not."""
    corner = np.array([0.95, 0.95])
    table = {g: np.full((2, 1), v) for g, v in (("chosen", 0.95), ("other", 0.7), ("random", 0.7))}
    added = {g: np.full((2, 1), 0.1) for g in GROUPS}
    got = CellScores("corners", ["a", "b"], ["a", "b"], np.array([3]), table, added)
    assert got.difference("other", added=False).change.value_S[0] == pytest.approx(0.25)
    assert got.difference("other").change.value_S[0] == 0
    assert got.difference("random", added=False).after == pytest.approx(corner.mean())


def test_layers_weigh_by_their_chosen_keys() -> None:
    rows = {
        "chosen": np.array([[0.5, 0.9, np.nan]]),
        "other": np.array([[0.6, 0.6, 0.1]]),
        "random": np.array([[0.5, 0.5, np.nan]]),
    }
    got = CellScores("some", ["a"], ["a"], np.array([3, 1, 0]), rows, rows)
    found = got.difference("other")
    assert (found.before, found.after) == pytest.approx((0.6, 0.6))
    assert got.difference("random").change.value_S[0] == pytest.approx(0.1)


def test_random_cells_are_as_many_a_layer_as_the_chosen(mlm: Mlm) -> None:
    """Chosen cells that are all cells of a layer have no others, and score nothing."""
    chosen = no_keys(mlm, squared(episode(0), SIDE).query)
    chosen[0] = True
    chosen[2, 0, :3] = True
    got = scores(mlm, chosen)
    assert got.keys_L.tolist() == [0, 0, 3]
    everywhere = got.accuracy_NL["chosen"][:, 0]
    assert np.allclose(got.accuracy_NL["random"][:, 0], everywhere)
    assert np.isnan(got.accuracy_NL["other"][:, 0]).all()
    assert not np.isnan(got.accuracy_NL["random"][:, 2]).any()


def test_an_episode_is_cut_like_its_image() -> None:
    whole = episode(3)
    cut = squared(whole, SIDE)
    assert all(i.size == (SIDE, SIDE) for i in (*cut.support, cut.query))
    for image, mask in zip((*cut.support, cut.query), (*cut.support_masks, cut.query_mask)):
        assert mask.shape == (SIDE, SIDE) and mask.sum() == 24 * 24
        assert np.asarray(image)[mask == 1].min() >= 200 > np.asarray(image)[mask == 0].max()


def test_what_cannot_be_scored_is_refused(mlm: Mlm) -> None:
    chosen = no_keys(mlm, squared(episode(0), SIDE).query)
    with pytest.raises(ValueError, match="at least one chosen key, found none"):
        scores(mlm, chosen)
    chosen[0, 0, 0] = True
    with pytest.raises(ValueError, match="at least one episode, found none"):
        score_cells(mlm, [], chosen, side=SIDE, seed=0)
    with pytest.raises(ValueError, match=r"e0: expected images on the keys' grid of 30 cells"):
        score_cells(mlm, [episode(0)], chosen[..., :30], side=SIDE, seed=0)
    whole = np.ones_like(chosen)
    with pytest.raises(ValueError, match="a layer with chosen cells and others, found none"):
        scores(mlm, whole).difference("other")
