"""Sources: every site's features on one grid, the same ones whatever ran before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import photo
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from kvfix.eval import source as source_module
from kvfix.eval.site import Site
from kvfix.eval.source import EncoderSource, MlmSource
from kvfix.mlm.capture import SITES
from kvfix.mlm.load import Mlm, load_mlm, load_reference_encoder

IMAGES = [photo(48, 48, seed=s) for s in range(5)]


@pytest.fixture(scope="module")
def mlm(checkpoint: Callable[[str], Path]) -> Mlm:
    return load_mlm(str(checkpoint("llava_onevision")), device="cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSource:
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=48,
            patch_size=8,
        )
    ).save_pretrained(folder)
    size = {"height": 48, "width": 48}
    BitImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return EncoderSource(load_reference_encoder(str(folder), device="cpu"))


def test_every_kind_has_as_many_features_as_sites_on_one_grid(mlm: Mlm) -> None:
    source = MlmSource(mlm, heads=True)
    [view] = source.views(IMAGES[:1])
    assert set(view.features) == {*SITES, "key/head", "value/head", "position"}
    for kind, f_SHWC in view.features.items():
        assert len(source.sites(kind)) == len(f_SHWC), kind
        assert tuple(f_SHWC.shape[1:3]) == view.layout.grid_hw, kind
    assert source.sites("vision") == [Site("vision")]
    assert source.sites("position") == [Site("position")]
    assert source.sites("value") == [Site("value", layer) for layer in range(3)]
    heads = source.sites("value/head")
    assert heads[:3] == [Site("value", 0, 0), Site("value", 0, 1), Site("value", 1, 0)]
    channels = mlm.head_dim
    for i, site in enumerate(heads):  # each head is its slice of its layer
        whole = view.features["value"][site.layer]
        part = whole[..., site.head * channels : (site.head + 1) * channels]
        assert torch.equal(view.features["value/head"][i], part)


def test_kinds_are_what_was_asked_for(mlm: Mlm) -> None:
    [view] = MlmSource(mlm, kinds=("projector", "value"), position=False).views(IMAGES[:1])
    assert set(view.features) == {"projector", "value"}


def test_features_come_in_order_and_do_not_depend_on_what_ran_before(mlm: Mlm) -> None:
    fresh, used = MlmSource(mlm), MlmSource(mlm)
    list(used.views([photo(96, 144, seed=9)]))  # an image of many tokens
    list(used.views(IMAGES))
    for a, b in zip(fresh.views(IMAGES), used.views(IMAGES), strict=True):
        for kind in a.features:  # to the last bit: a resumed run must end with equal numbers
            assert torch.equal(a.features[kind], b.features[kind]), kind
    for image, view in zip(IMAGES, fresh.views(IMAGES), strict=True):
        [alone] = fresh.views([image])
        torch.testing.assert_close(view.features["value"], alone.features["value"])


def test_a_pass_holds_no_more_tokens_than_its_budget(
    mlm: Mlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = source_module.extract

    def extract(model, prompts, **options):
        sizes.append(len(prompts))
        return real(model, prompts, **options)

    monkeypatch.setattr(source_module, "extract", extract)
    source = MlmSource(mlm)
    [view] = source.views(IMAGES[:1])
    monkeypatch.setattr(source_module, "TOKEN_BUDGET", 2 * view.layout.n_tokens + 1)
    list(source.views(IMAGES))
    monkeypatch.setattr(source_module, "TOKEN_BUDGET", 1)  # one image is always allowed
    list(source.views(IMAGES[:2]))
    assert sizes == [1, 2, 2, 1, 1, 1]


def test_clips_stream(mlm: Mlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are opened once, a batch at a time: memory does not grow with a clip."""
    opened: list[int] = []

    class Lazy(list):
        def __iter__(self):
            for number, image in enumerate(super().__iter__()):
                opened.append(number)
                yield image

    monkeypatch.setattr(source_module, "TOKEN_BUDGET", 1)
    views = MlmSource(mlm, kinds=("vision",)).views(Lazy(IMAGES))
    next(views)
    assert opened == [0]
    list(views)
    assert opened == list(range(len(IMAGES)))


def test_a_text_is_read_where_the_image_is_read(mlm: Mlm) -> None:
    source = MlmSource(mlm, heads=True)
    view, said = source.spoken(IMAGES[0], "a red disc")
    assert set(said) == {"hidden", "key", "value", "key/head", "value/head", "position"}
    for kind, t_SC in said.items():
        f_SHWC = view.features[kind]
        assert t_SC.shape == (f_SHWC.shape[0], f_SHWC.shape[3]), kind
    other_view, other = source.spoken(IMAGES[0], "a blue ring")
    assert not torch.equal(said["value"], other["value"])
    # The image comes first, so no text moves it.
    torch.testing.assert_close(view.features["value"], other_view.features["value"])
    torch.testing.assert_close(said["position"], other["position"])
    rows, cols = view.layout.grid_hw
    assert torch.equal(said["position"], view.features["position"][:, rows // 2, cols // 2])


def test_features_that_are_no_numbers_are_refused_not_scored(
    mlm: Mlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = source_module.extract

    def overflowing(model, prompts, **options):
        samples = real(model, prompts, **options)
        for sample in samples:
            sample.images[0]["hidden"][-1, 0, 0, 0] = float("inf")
        return samples

    monkeypatch.setattr(source_module, "extract", overflowing)
    with pytest.raises(ValueError, match=r"NaN or infinity in hidden \(torch.float32\)"):
        list(MlmSource(mlm).views(IMAGES[:1]))


def test_a_bare_encoder_has_one_site_and_no_text(encoder: EncoderSource) -> None:
    views = list(encoder.views(IMAGES[:2]))
    for view in views:
        assert list(view.features) == ["reference"]
        assert tuple(view.features["reference"].shape) == (1, 6, 6, 32)
        assert view.layout.grid_hw == (6, 6)
    assert not torch.equal(views[0].features["reference"], views[1].features["reference"])
    assert encoder.sites("reference") == [Site("reference")]
    view, said = encoder.spoken(IMAGES[0], "a red disc")
    assert torch.equal(view.features["reference"], views[0].features["reference"]) and said == {}
