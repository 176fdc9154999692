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
from kvfix.diagnose.keys.artifacts import KeyDiagnosis, diagnose_keys
from kvfix.diagnose.keys.findings import key_findings
from kvfix.diagnose.keys.values import CellScores, score_cells, squared
from kvfix.mlm.load import Mlm

EPISODES = 8


@pytest.fixture(scope="module")
def mlm(tmp_path_factory: pytest.TempPathFactory) -> Mlm:
    return tiny_mlm("llava", tmp_path_factory.mktemp("tiny"))


def bright_square(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A brighter square somewhere on noise, and its mask; wider than high."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 160, (SIDE, SIDE + 16, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE + 16), np.uint8)
    y, x = rng.integers(0, SIDE - 24, 2)
    mask[y : y + 24, 8 + x : 8 + x + 24] = 1
    pixels[mask == 1] += 60
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


@pytest.fixture(scope="module")
def diagnosis(mlm: Mlm) -> KeyDiagnosis:
    return diagnose_keys(mlm, [photo(SIDE, SIDE, seed=i) for i in range(64)], seed=0)


def test_values_that_are_noise_at_chosen_keys_are_found_to_be_worse(
    mlm: Mlm, diagnosis: KeyDiagnosis
) -> None:
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
    assert got.gap_NL.shape == got.random_gap_NL.shape == (EPISODES, 3)
    assert np.isnan(got.gap_NL[:, 1]).all() and not np.isnan(got.gap_NL[:, ::2]).any()
    assert got.accuracy["chosen"] < got.accuracy["other"] - 0.05
    for change in (got.gap(), got.beyond_random()):
        assert change is not None
        assert change.high_S[0] < 0 and change.n_S[0] == EPISODES
    found = {f.id: f.to_json() for f in key_findings(diagnosis, got)}
    for name in ("keys.values", "keys.values_random"):
        finding = found[name]
        assert finding["clear"] and finding["value"] < 0 and finding["n"] == EPISODES
        assert "no clear" not in finding["text"]
        assert json.loads(json.dumps(finding, allow_nan=False)) == finding
        for number in (finding["value"], *finding["ci"]):
            assert f"{number:+.3f}" in finding["text"]


def test_where_nothing_is_planted_chosen_keys_are_like_the_others(mlm: Mlm) -> None:
    image = squared(episode(0), SIDE).query
    clear = 0
    for seed in range(2):
        got = scores(mlm, random_keys(no_keys(mlm, image).shape, 0.2, seed=seed))
        change = got.gap()
        assert change is not None and abs(change.value_S[0]) < 0.1
        clear += bool(change.low_S[0] > 0 or change.high_S[0] < 0)
    assert clear <= 1  # 0.1 expected of 2


def test_easy_cells_are_not_taken_for_better_values(mlm: Mlm) -> None:
    """Chosen keys in the corners, where all is ground: accuracy is high, the gap is none."""
    chosen = no_keys(mlm, squared(episode(0), SIDE).query)
    chosen[:, 0, [0, 5, 30, 35]] = True
    got = scores(mlm, chosen)
    easier = got.accuracy["chosen"] - got.accuracy["other"]
    assert easier > 0.1 and got.accuracy["place"] > 0.9
    change = got.gap()
    assert change is not None and change.low_S[0] < 0 < change.high_S[0]
    assert abs(change.value_S[0]) < easier / 2


def some_scores(gap_NL: np.ndarray, random_NL: np.ndarray, cells: list[int]) -> CellScores:
    names = [f"e{i}" for i in range(len(gap_NL))]
    plain = {"chosen": 0.8, "other": 0.7, "place": 0.75}
    return CellScores("some", names, names, np.array(cells), plain, gap_NL, random_NL)


def test_layers_weigh_by_their_cells() -> None:
    got = some_scores(
        np.array([[0.1, 0.5, np.nan]] * 2), np.array([[0.0, 0.2, 0.9]] * 2), [3, 1, 0]
    )
    gap, beyond = got.gap(), got.beyond_random()
    assert gap is not None and gap.value_S[0] == pytest.approx(0.2)
    assert beyond is not None and beyond.value_S[0] == pytest.approx(0.15)


def test_few_episodes_and_no_difference_are_said(diagnosis: KeyDiagnosis) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (20, 1))
    for scored, words in (
        (some_scores(noise, 0 * noise, [4]), "no clear difference"),
        (some_scores(noise[:5] - 9, 0 * noise[:5], [4]), "too few clusters to tell"),
    ):
        found = {f.id: f.to_json() for f in key_findings(diagnosis, scored)}
        assert words in found["keys.values"]["text"] and not found["keys.values"]["clear"]
        assert "by the place alone 0.750" in found["keys.values"]["text"]
    nothing = some_scores(np.full((9, 1), np.nan), np.full((9, 1), np.nan), [0])
    told = [f.to_json() for f in key_findings(diagnosis, nothing)]
    [last] = [f for f in told if f["id"].startswith("keys.values")]
    assert "cannot be told" in last["text"] and last["value"] is None and last["n"] == 9


def test_chosen_keys_in_all_heads_of_their_cells_have_nothing_to_compare_with(mlm: Mlm) -> None:
    chosen = no_keys(mlm, squared(episode(0), SIDE).query)
    chosen[0] = True
    chosen[1, :, :9] = True
    chosen[2, 0, :3] = True
    got = scores(mlm, chosen)
    assert got.cells_L.tolist() == [0, 0, 3]
    assert np.isnan(got.gap_NL[:, :2]).all() and not np.isnan(got.gap_NL[:, 2]).any()
    assert np.isnan(got.random_gap_NL[:, 0]).all()  # equally many is all of them
    assert not np.isnan(got.random_gap_NL[:, 1:]).any()


def test_an_episode_is_cut_like_its_image() -> None:
    whole = episode(3)
    cut = squared(whole, SIDE)
    assert all(i.size == (SIDE, SIDE) for i in (*cut.support, cut.query))
    for image, mask in zip(
        (*cut.support, cut.query), (*cut.support_masks, cut.query_mask), strict=True
    ):
        assert mask.shape == (SIDE, SIDE) and mask.sum() == 24 * 24
        pixels = np.asarray(image)
        assert pixels[mask == 1].min() >= 60 and pixels[mask == 0].max() < 160
        assert pixels[mask == 1].max() >= 160 and pixels[mask == 0].min() < 60


def test_what_cannot_be_scored_is_refused(mlm: Mlm) -> None:
    chosen = no_keys(mlm, squared(episode(0), SIDE).query)
    with pytest.raises(ValueError, match="at least one chosen key, found none"):
        scores(mlm, chosen)
    chosen[0, 0, 0] = True
    with pytest.raises(ValueError, match="at least one episode, found none"):
        score_cells(mlm, [], chosen, side=SIDE, seed=0)
    with pytest.raises(ValueError, match=r"e0: expected images on the keys' grid of 30 cells"):
        score_cells(mlm, [episode(0)], chosen[..., :30], side=SIDE, seed=0)
