"""Input-agnostic keys: what is planted in tiny models of the real classes is found, no more."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from key_plants import (
    SIDE,
    cell_positions,
    constant_keys,
    hooked,
    no_keys,
    photos,
    random_keys,
    shared_direction,
    tiny_mlm,
)
from PIL import Image
from scipy import stats
from tiny import FAMILIES, photo

from kvfix.diagnose.keys.artifacts import KeyDiagnosis, diagnose_keys, judge_keys
from kvfix.diagnose.keys.calibration import ALPHA, dependence
from kvfix.diagnose.keys.findings import key_findings, key_results
from kvfix.diagnose.keys.statistics import FEWEST_IMAGES, massive, merged, stream_keys, to_square
from kvfix.eval.source import NEUTRAL
from kvfix.mlm.capture import extract
from kvfix.mlm.load import Mlm, Prompt

PHOTOS = photos(FEWEST_IMAGES)
BIASED = ("llava_onevision", "qwen2_5_vl")  # LMs with a bias in `k_proj`


@pytest.fixture(scope="module", params=FAMILIES)
def mlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mlm:
    return tiny_mlm(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Mlm:
    return tiny_mlm("llava_onevision", tmp_path_factory.mktemp("one"))


def found_in(mlm: Mlm, **options: object) -> KeyDiagnosis:
    return diagnose_keys(mlm, PHOTOS, seed=0, **options)  # type: ignore[arg-type]


def chance_limit(n_keys: int) -> float:
    """Largest share that a rate of ALPHA gives by chance in 999 of 1000 models of so many keys."""
    return float(stats.binom.ppf(0.999, n_keys, ALPHA)) / n_keys


# what is planted is found, and nothing else


def test_chosen_positions_are_found_exactly(mlm: Mlm) -> None:
    chosen = random_keys(no_keys(mlm, PHOTOS[0]).shape, 0.1, seed=1)
    assert 10 < chosen.sum() < 40
    with constant_keys(mlm, chosen, PHOTOS[0]):
        got = found_in(mlm)
    assert np.array_equal(got.agnostic_LHP, chosen)  # precision and recall 1
    assert got.calibration.tau > got.r_LHP[chosen].max()
    assert got.shares.model.value_S[0] == pytest.approx(chosen.mean())
    assert got.halves.jaccard == 1 and got.halves.chance < 0.1
    rows, cols = got.grid_hw
    assert np.allclose(got.share_map()[1, 0], chosen[1].mean(0)[:cols])
    assert got.r_LHP.shape == (*chosen.shape[:2], rows * cols)


def test_one_key_and_a_third_of_all_keys_are_found_as_well(onevision: Mlm) -> None:
    one = no_keys(onevision, PHOTOS[0])
    one[2, 1, 17] = True
    many = random_keys(one.shape, 0.35, seed=2)
    for chosen in (one, many):
        with constant_keys(onevision, chosen, PHOTOS[0]):
            assert np.array_equal(found_in(onevision).agnostic_LHP, chosen)


def test_a_whole_head_is_found(mlm: Mlm, tmp_path: Path) -> None:
    """Its rows of `k_proj` are zero: what is left is the bias, where there is one, or nothing."""
    altered = tiny_mlm(mlm.family.model_type, tmp_path)
    d = altered.head_dim
    proj = altered.layer(2).self_attn.k_proj
    proj.weight.data[d : 2 * d] = 0
    chosen = no_keys(altered, PHOTOS[0])
    chosen[2, 1] = True
    got = found_in(altered)
    assert np.array_equal(got.agnostic_LHP, chosen)
    assert got.calibration.heads_left_out == 1 and got.calibration.null_fpr <= ALPHA
    # The same with one direction that is not the bias.
    with shared_direction(altered, 3.0):
        again = found_in(altered)
    assert np.array_equal(again.agnostic_LHP, chosen)
    assert again.cosines.cells_LH[2, 1] == pytest.approx(1)
    assert np.allclose(again.cosines.images_LHP[2, 1], 1)


@pytest.mark.parametrize("family", BIASED)
def test_a_large_bias_of_k_proj_changes_nothing(family: str, tmp_path: Path) -> None:
    plain, biased = tiny_mlm(family, tmp_path), tiny_mlm(family, tmp_path)
    generator = torch.Generator().manual_seed(3)
    for layer in range(biased.n_layers):
        bias = biased.key_bias(layer)
        assert bias is not None
        bias.data += 20 * torch.randn(bias.shape, generator=generator)
    # Keys plus a constant give the same attention but for RoPE: only layer 0 reads the same.
    before, after = (found_in(m) for m in (plain, biased))
    assert np.allclose(before.r_LHP[0], after.r_LHP[0], rtol=1e-3)
    assert not after.agnostic_LHP.any() and after.r_LHP.min() > 0.1
    chosen = random_keys(before.r_LHP.shape, 0.1, seed=4)
    with constant_keys(biased, chosen, PHOTOS[0]):
        assert np.array_equal(found_in(biased).agnostic_LHP, chosen)


@pytest.mark.parametrize("length", [0.0, 8.0])
def test_a_sound_model_stays_within_the_stated_rate(length: float, tmp_path: Path) -> None:
    """Also where one direction shared by all keys makes r small everywhere, as training does."""
    flagged, keys = 0, 0
    for family in FAMILIES:
        mlm = tiny_mlm(family, tmp_path, seed=1)
        with shared_direction(mlm, length):
            got = found_in(mlm)
        assert np.median(got.r_LHP) < 0.1 or not length
        assert got.calibration.null_fpr <= chance_limit(got.r_LHP.size)
        assert not got.shares.clear_L.any() and got.split_from is None
        flagged, keys = flagged + int(got.agnostic_LHP.sum()), keys + got.r_LHP.size
    assert flagged / keys <= chance_limit(keys)


def test_planted_keys_are_found_under_a_shared_direction(mlm: Mlm) -> None:
    chosen = random_keys(no_keys(mlm, PHOTOS[0]).shape, 0.1, seed=5)
    with shared_direction(mlm, 8.0), constant_keys(mlm, chosen, PHOTOS[0]):
        assert np.array_equal(found_in(mlm).agnostic_LHP, chosen)


def test_later_layers_split_where_that_is_planted(onevision: Mlm) -> None:
    chosen = no_keys(onevision, PHOTOS[0])
    chosen[1:, :, ::3] = True
    with constant_keys(onevision, chosen, PHOTOS[0]):
        got = found_in(onevision)
    assert got.split_L.tolist() == [False, True, True] and got.split_from == 1
    assert got.shares.clear_L.tolist() == [False, True, True]
    text = {f.id: f.text for f in key_findings(got)}
    assert "From layer 1 of 3 on, image keys split" in text["keys.split"]
    assert "Layers 1, 2 of 3 hold more agnostic keys" in text["keys.layers"]


# the statistics


def two_pass(mlm: Mlm) -> np.ndarray:
    """Keys of all photos, (N, L, H, P, D), bias taken off: what streaming must not hold."""
    keys = []
    for image in PHOTOS:
        [sample] = extract(mlm, [Prompt((image,), NEUTRAL)], sites=("key",))
        k_LPHD = sample.images[0]["key"].double().flatten(1, 2).unflatten(-1, (mlm.n_kv_heads, -1))
        for layer in range(mlm.n_layers):
            bias = mlm.key_bias(layer)
            if bias is not None:
                k_LPHD[layer] -= bias.detach().double().unflatten(0, (mlm.n_kv_heads, -1))
        keys.append(k_LPHD.movedim(2, 1).numpy())
    return np.stack(keys)


def test_streamed_statistics_are_those_of_two_passes(mlm: Mlm) -> None:
    k = two_pass(mlm)
    n, mean, trace = len(k), k.mean(0), k.var(0, ddof=1).sum(-1)
    got = stream_keys(mlm, PHOTOS, batch=5)
    total = merged(got.groups)
    assert np.allclose(total.mean_LHPD, mean, rtol=0, atol=1e-6 * np.abs(mean).max())
    assert np.allclose(total.variance_LHP, trace, rtol=1e-6)
    r = trace / (trace + (mean**2).sum(-1) - trace / n)
    assert np.allclose(judge_keys(got, seed=0).r_LHP, r, rtol=1e-6)
    unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
    cosines = np.einsum("ilhpd,jlhpd->lhpij", unit, unit)[..., *np.triu_indices(n, 1)].mean(-1)
    assert np.allclose(got.image_cosine_LHP, cosines, atol=1e-6)
    direction = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    cells = np.einsum("lhpd,lhqd->lhpq", direction, direction)
    between = cells[..., *np.triu_indices(cells.shape[-1], 1)].mean(-1)
    assert np.allclose(judge_keys(got, seed=0).cosines.cells_LH, between, atol=1e-6)


def test_the_batch_size_does_not_matter(mlm: Mlm) -> None:
    some, other = (diagnose_keys(mlm, PHOTOS, seed=0, batch=b) for b in (7, None))
    assert np.allclose(some.r_LHP, other.r_LHP, rtol=0, atol=1e-6)
    assert some.calibration.tau == pytest.approx(other.calibration.tau, abs=1e-6)


def test_images_are_let_go_of_as_they_are_read(onevision: Mlm) -> None:
    alive: set[int] = set()
    most: list[int] = []

    def drawn() -> Iterator[Image.Image]:
        for seed in range(FEWEST_IMAGES + 16):
            image = photo(SIDE, SIDE, seed=seed)
            alive.add(seed)
            weakref.finalize(image, alive.discard, seed)
            most.append(len(alive))
            yield image

    ticks: list[int] = []
    got = stream_keys(onevision, drawn(), batch=8, tick=lambda: ticks.append(1))
    assert got.n == len(ticks) == FEWEST_IMAGES + 16
    assert max(most) <= 2 * 8 + 1  # one batch in the model, one being read
    fewer = stream_keys(onevision, PHOTOS, batch=8)
    sizes = [sum(g.mean_LHPD.numel() + g.m2_LHP.numel() for g in s.groups) for s in (got, fewer)]
    assert sizes[0] == sizes[1]


def test_images_of_one_cluster_are_in_one_group(onevision: Mlm) -> None:
    clusters = [i // 4 for i in range(FEWEST_IMAGES)]  # 16 clips of 4 frames
    got = stream_keys(onevision, PHOTOS, clusters=clusters)
    frames = [i for i in range(FEWEST_IMAGES) if clusters[i] % 8 == 3]
    expected = two_pass(onevision)[frames].mean(0)
    assert [g.n for g in got.groups] == [8] * 8
    assert np.allclose(got.groups[3].mean_LHPD, expected, atol=1e-5)


# sinks


def test_massive_activations_need_both_sizes() -> None:
    x = torch.full((5, 8), 0.05)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = 101, 99, -101, 60
    assert massive(x).tolist() == [True, False, True, False, False]
    assert massive(x + 0.1).tolist() == [False] * 5  # above 100, not 1000 times the median 0.15


def test_sinks_are_counted_apart_from_agnostic_keys(onevision: Mlm) -> None:
    at = cell_positions(onevision, PHOTOS[0])

    def sink(layer: int, out: torch.Tensor) -> torch.Tensor:
        if layer == 0:
            out = out.clone()
            out[:, at[4], 3] = 1e6
        return out

    chosen = no_keys(onevision, PHOTOS[0])
    chosen[1, 0, 4:6] = True  # one key at the sink, one beside it
    layers = [onevision.layer(i) for i in range(onevision.n_layers)]
    with constant_keys(onevision, chosen, PHOTOS[0]), hooked(layers, sink):
        got = found_in(onevision)
    only_cell_4 = np.arange(36) == 4
    assert np.array_equal(got.sinks.sink_LP, [~only_cell_4 & only_cell_4, only_cell_4, only_cell_4])
    assert got.agnostic_LHP[chosen].all()
    at_sinks = got.sinks.both + got.sinks.sink_only
    assert at_sinks == 2 * onevision.n_kv_heads
    assert got.sinks.both == got.agnostic_LHP[1:, :, 4].sum() >= 1
    assert got.sinks.agnostic_only == got.agnostic_LHP.sum() - got.sinks.both >= 1


# what is refused


def test_images_of_another_grid_are_refused(mlm: Mlm) -> None:
    wide = [*PHOTOS[:40], photo(SIDE, 2 * SIDE), *PHOTOS[40:]]
    if mlm.family.model_type == "llava":  # one grid for all images
        assert stream_keys(mlm, wide).n == 65
        return
    with pytest.raises(ValueError, match=r"image 40 \(48 x 96 pixels\).*grid of 6 x 6.*to_square"):
        stream_keys(mlm, wide)
    assert stream_keys(mlm, [to_square(i, SIDE) for i in wide]).n == 65


def test_what_cannot_be_told_is_refused(onevision: Mlm) -> None:
    with pytest.raises(ValueError, match=r"at least 64 images.*found 63"):
        stream_keys(onevision, PHOTOS[:63])
    with pytest.raises(ValueError, match=r"at least 64 images.*found 63"):
        stream_keys(onevision, iter(PHOTOS[:63]))
    with pytest.raises(ValueError, match=r"two images in each of 8 groups.*more clusters"):
        stream_keys(onevision, PHOTOS, clusters=["one clip"] * 64)
    for labels in (63, 65):
        with pytest.raises(ValueError, match=f"one cluster an image, found {labels}"):
            stream_keys(onevision, PHOTOS, clusters=list(range(labels)))
    with pytest.raises(ValueError, match=r"alpha in \(0, 0.02\], found 0.05"):
        diagnose_keys(onevision, PHOTOS, seed=0, alpha=0.05)
    k_proj = onevision.layer(1).self_attn.k_proj
    with (
        hooked([k_proj], lambda i, out: out * float("nan")),
        pytest.raises(ValueError, match="image 0: expected finite keys"),
    ):
        stream_keys(onevision, PHOTOS)


def test_a_square_is_cut_from_the_middle() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    assert np.array_equal(to_square(image, 5), np.tile(np.uint8([0, 0, 255]), (5, 5, 1)))
    assert to_square(image.transpose(Image.Transpose.ROTATE_90).convert("L"), 7).mode == "RGB"


# what is said


def test_findings_without_any_agnostic_key_say_so(onevision: Mlm) -> None:
    text = {f.id: f.text for f in key_findings(found_in(onevision))}
    assert "0.000 [0.000, 0.000] (n = 64) of 216 keys, not above the stated" in text["keys.share"]
    assert text["keys.layers"].startswith("No layer of 3 holds an agnostic key: 0.000")
    assert text["keys.heads"].startswith("No KV head out of 6 has an agnostic key")
    assert text["keys.split"].startswith("No layer of 3 shows split image keys")
    assert "agree that no key is agnostic" in text["keys.halves"]
    assert text["keys.sinks"].startswith("Sinks: no image token has a massive activation")


def test_findings_and_results_are_plain_json(onevision: Mlm) -> None:
    chosen = random_keys(no_keys(onevision, PHOTOS[0]).shape, 0.1, seed=6)
    with constant_keys(onevision, chosen, PHOTOS[0]):
        got = found_in(onevision, dataset="photos")
    findings, rows = [f.to_json() for f in key_findings(got)], key_results(got)
    for item in (*findings, *rows):
        assert json.loads(json.dumps(item, allow_nan=False)) == item
        assert item["n"] == 64 and item["dataset"] == "photos" and item["task"] == "image_keys"
    assert len({f["id"] for f in findings}) == len(findings)
    for finding in findings:
        for number in (finding["value"], *(finding["ci"] or ())):
            assert f"{number:.3f}" in finding["text"]
    by_layer = [r["value"] for r in rows if r["head"] is None]
    by_head = [r["value"] for r in rows if r["head"] is not None]
    assert by_layer == pytest.approx(chosen.mean((1, 2)).tolist())
    assert by_head == pytest.approx(chosen.mean(2).ravel().tolist())
    assert [(r["layer"], r["head"]) for r in rows[3:]] == [(i, h) for i in range(3) for h in (0, 1)]


def test_r_of_keys_that_never_move_and_of_keys_without_a_mean() -> None:
    zero, one = np.zeros(1), np.ones(1)
    assert dependence(zero, one, 64) == 0 and dependence(zero, zero, 64) == 0
    assert dependence(one, zero, 64) == pytest.approx(64 / 65)  # a mean is known to 1 / n only
    assert dependence(one, one + one / 64, 64) == pytest.approx(0.5)
