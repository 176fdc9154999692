"""Layouts against the models' own packing code, and painted pixels against the vision tower."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from painted import GREY, painted, without_mixing
from PIL import Image
from transformers import Idefics3ImageProcessor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from kvfix.eval.grid import cell_centres
from kvfix.mlm.capture import SampleFeatures, _shrink, extract
from kvfix.mlm.images.llava import anyres_layout, base_tile_layout, shrunk_grid
from kvfix.mlm.images.mosaic import idefics3_tiles, mosaic_layout
from kvfix.mlm.images.pixel_view import PixelView
from kvfix.mlm.images.qwen import raster_layout
from kvfix.mlm.images.tiles import tile_layout
from kvfix.mlm.load import Prompt, load_mlm

ONEVISION_7B = LlavaOnevisionConfig().image_grid_pinpoints
NEXT_8B = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _sizes(n: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    sizes = [(rng.randint(30, 2500), rng.randint(30, 2500)) for _ in range(n)]
    return [*sizes, (384, 384), (480, 854), (336, 672), (1000, 30)]


def _packed_by_the_model(model_class, config, layout, size, tiles, **options):
    """Let the model pack the numbers of its rows: which row does each token show?"""
    side2 = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    rows = torch.arange(tiles * side2, dtype=torch.float64).view(tiles, side2, 1)
    newline = torch.tensor([-1.0], dtype=torch.float64)
    packed, _ = model_class.pack_image_features(
        SimpleNamespace(config=config),
        [rows],
        [torch.tensor(size)],
        image_newline=newline,
        **options,
    )
    return packed[0][:, 0]


def _check_against_packing(layout, packed, tiles, side):
    assert layout.n_tokens == len(packed)
    assert layout.n_rows == tiles * side * side
    rows = _shrink(layout.rows_HW[..., None].double(), layout.grid_hw)[..., 0]
    assert torch.equal(packed[layout.index_HW], rows)


def test_onevision_7b_rows_and_tokens_are_the_models():
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=384, patch_size=14),
        image_grid_pinpoints=ONEVISION_7B,
    )
    shrunk = 0
    for size in _sizes(40):
        layout = anyres_layout(size, ONEVISION_7B, tile=384, patch=14, max_tiles=9)
        tiles = layout.n_rows // 27**2
        packed = _packed_by_the_model(
            LlavaOnevisionModel, config, layout, size, tiles, vision_aspect_ratio="anyres_max_9"
        )
        _check_against_packing(layout, packed, tiles, 27)
        shrunk += layout.rows_HW.shape != layout.index_HW.shape
    assert shrunk > 3


def test_next_8b_rows_and_tokens_are_the_models():
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=NEXT_8B
    )
    for size in _sizes(40):
        layout = anyres_layout(size, NEXT_8B, tile=336, patch=14)
        tiles = layout.n_rows // 24**2
        packed = _packed_by_the_model(
            LlavaNextModel, config, layout, size, tiles, vision_feature_select_strategy="default"
        )
        _check_against_packing(layout, packed, tiles, 24)


def test_token_counts_are_the_processors():
    onevision = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=ONEVISION_7B),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
    )
    nextp = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=NEXT_8B),
        patch_size=14,
        num_additional_image_tokens=0,
    )
    for fake, kind in ((onevision, LlavaOnevisionProcessor), (nextp, LlavaNextProcessor)):
        fake._get_unpadded_features = functools.partial(kind._get_unpadded_features, fake)
    for size in _sizes(300):
        layout = anyres_layout(size, ONEVISION_7B, tile=384, patch=14, max_tiles=9)
        count = LlavaOnevisionProcessor._get_number_of_features(onevision, *size, 384, 384)
        assert layout.n_tokens == count, size
        layout = anyres_layout(size, NEXT_8B, tile=336, patch=14)
        assert layout.n_tokens == LlavaNextProcessor._get_number_of_features(nextp, *size, 336, 336)


@pytest.mark.parametrize("size", [(100, 100), (480, 854), (63, 1400), (1000, 300)])
def test_qwen_rows_undo_the_models_window_order(size):
    height, width = smart_resize(*size, factor=28)
    grid = (height // 14, width // 14)
    layout = raster_layout(size, grid, merge=2, window=112 // 2 // 14)
    order, _ = get_vision_window_index(torch.tensor([[1, *grid]]), 2, 112, 14)
    assert torch.equal(layout.rows_HW.flatten(), torch.argsort(order))
    assert layout.n_tokens == grid[0] * grid[1] // 4
    assert layout.box == pytest.approx((0, 0, size[1], size[0]))


def test_tile_after_a_centre_crop_by_hand():
    # 60 x 100 -> 48 x 80, the middle 48 columns kept: original pixels 20..80, cells of 10 pixels.
    view = PixelView.of((60, 100)).shortest_edge(48).centre_crop(48, 48)
    layout = tile_layout((60, 100), view, patch=8, leading=1)
    assert layout.box == pytest.approx((20, 0, 80, 60))
    assert cell_centres(layout)[0, 0].tolist() == pytest.approx([25, 5])
    assert cell_centres(layout)[2, 5].tolist() == pytest.approx([75, 25])
    assert layout.index_HW[0, 0] == 1
    assert layout.n_tokens == 37


def test_patches_of_a_tile_do_not_reach_its_border():
    # 384 = 27 * 14 + 6: the last six pixels of every tile are seen by no patch.
    layout = anyres_layout((384, 768), ONEVISION_7B, tile=384, patch=14, max_tiles=9)
    assert layout.grid_hw == (27, 54)
    assert layout.xs_W[[0, 26, 27, 53]].tolist() == pytest.approx([7, 371, 391, 755])


def test_a_mosaic_of_stretched_tiles_by_hand():
    # SmolVLM2-2.2B: nine cells of 42 px cover 378 px of a tile of 384; here one pixel is one pixel.
    layout = mosaic_layout((384, 768), (1, 2), tile=384, cell=42)
    assert layout.grid_hw == (9, 18) and layout.n_tokens == layout.n_rows == 3 * 81
    assert layout.xs_W[[0, 8, 9, 17]].tolist() == pytest.approx([21, 357, 405, 741])
    assert layout.index_HW[1, :2].tolist() == [9, 10] and layout.index_HW[0, 9] == 81
    # One tile, half as wide as the image: a pixel of it is two of the image. Nothing follows it.
    alone = mosaic_layout((48, 96), (1, 1), tile=48, cell=8)
    assert alone.n_tokens == 36 and alone.box == pytest.approx((0, 0, 96, 48))
    assert cell_centres(alone)[0, 1].tolist() == pytest.approx([24, 4])


def test_tiles_of_idefics3_are_the_processors():
    images = Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32})
    found = {idefics3_tiles(size, 128, 32) for size in _sizes(60)}
    assert len(found) > 5
    for height, width in _sizes(60):
        picture = Image.new("RGB", (width // 8 + 1, height // 8 + 1))
        made = images([[picture]], return_row_col_info=True, return_tensors="pt")
        rows, columns = made["rows"][0][0], made["cols"][0][0]
        expected = (rows, columns) if rows else (1, 1)
        assert idefics3_tiles((picture.height, picture.width), 128, 32) == expected


def test_one_of_several_onevision_images_is_padded_to_a_square():
    layout = base_tile_layout((60, 100), tile=48, patch=8)
    assert layout.box == pytest.approx((0, -20, 100, 80))
    assert layout.n_tokens == 37
    assert layout.n_rows == 36


@pytest.mark.parametrize("size", [(60, 100), (97, 41)])
def test_cell_of_inverts_centres(size):
    layout = anyres_layout(size, tiny.PINPOINTS, tile=48, patch=8, max_tiles=1)
    x, y = cell_centres(layout).double().unbind(-1)
    rows, cols = np.indices(layout.grid_hw)
    at = layout.cell_of(x.numpy(), y.numpy())
    np.testing.assert_allclose(at.row, rows, atol=1e-5)
    np.testing.assert_allclose(at.col, cols, atol=1e-5)
    corner = layout.cell_of(layout.box.x0, layout.box.y1)
    assert (float(corner.row), float(corner.col)) == pytest.approx((layout.grid_hw[0] - 0.5, -0.5))
    step = layout.xs_W[1] - layout.xs_W[0]
    assert float(layout.cell_of(layout.box.x0 - 2 * step, 0).col) == pytest.approx(-2.5)


def test_shrinking_starts_past_1_1_times():
    assert shrunk_grid((27 * 3, 27 * 3), 27, 9) == (81, 81)
    assert shrunk_grid((27 * 6, 27 * 6), 27, 9) == (81, 81)
    assert shrunk_grid((27 * 6, 27 * 6), 27, None) == (162, 162)


def test_errors_say_what_to_do():
    view = PixelView.of((48, 48))
    with pytest.raises(ValueError, match=r"expected a vision tower with a CLS token.*'full'"):
        tile_layout((48, 48), view, patch=8, leading=-1)
    with pytest.raises(ValueError, match=r"fills at least one image token, found 4 x 4"):
        tile_layout((4, 4), PixelView.of((4, 4)), patch=8, leading=0)


# --- painted pixels -------------------------------------------------------------------------------

PAINTED = [
    ("llava_onevision", (96, 192), 1),
    ("llava_onevision", (120, 240), 1),
    ("llava_onevision", (180, 100), 1),
    ("llava_onevision", (90, 90), 2),
    ("llava_onevision", (60, 96), 3),
    ("llava_onevision", (60, 100), 1),
    ("onevision_gaps", (120, 240), 1),
    ("onevision_shrunk", (140, 140), 1),
    ("llava_next", (120, 240), 1),
    ("llava_next", (250, 250), 1),
    ("llava_next", (170, 60), 2),
    ("qwen2_5_vl", (70, 130), 1),
    ("qwen2_5_vl", (150, 60), 2),
    ("llava", (100, 170), 1),
    ("llava", (170, 100), 2),
    ("llava_siglip", (100, 170), 1),
    ("llava_dinov2", (100, 170), 1),
    ("llava_full", (96, 96), 1),
    ("llava_full", (60, 96), 1),
    ("llava_bare_clip", (100, 170), 1),
    ("qwen2_vl", (70, 130), 1),
    ("qwen3_vl", (150, 60), 2),
    ("idefics3", (100, 170), 1),
    ("idefics3", (170, 60), 2),
    ("idefics3_gaps", (100, 170), 1),
    ("internvl", (60, 170), 1),
    ("internvl", (150, 100), 2),
    ("internvl", (50, 50), 3),
    ("gemma3", (100, 170), 1),
    ("gemma3", (170, 60), 2),
    ("paligemma", (100, 170), 1),
    ("paligemma", (170, 60), 2),
    ("glm4v", (70, 130), 1),
    ("glm4v", (150, 60), 2),
    ("qwen3_vl_moe", (70, 130), 1),
    ("smolvlm", (100, 170), 1),
    ("smolvlm_whole", (60, 170), 2),
]


def test_a_picture_is_painted_for_every_family():
    assert set(tiny.EVERY) <= {name for name, _, _ in PAINTED}


@pytest.mark.parametrize(("name", "size", "n_images"), PAINTED)
def test_a_painted_cell_is_the_cell_that_changes(name, size, n_images, checkpoint):
    mlm = load_mlm(str(checkpoint(name)))
    without_mixing(mlm)
    blank = Image.fromarray(np.full((*size, 3), GREY, dtype=np.uint8))

    def look(*images: Image.Image) -> list[SampleFeatures]:
        others = (blank,) * (n_images - 1)  # the painted image comes last
        return extract(mlm, [Prompt((*others, image), "x") for image in images], sites=("vision",))

    sample = look(blank)[0]
    before_HWC, layout = sample.images[-1]["vision"][0], sample.layouts[-1]
    height, width = layout.grid_hw
    # Cells of padding are left out: there is nothing to paint.
    inside = [
        (row, col)
        for row, col in np.ndindex(height, width)
        if 0 <= layout.xs_W[col] < size[1] and 0 <= layout.ys_H[row] < size[0]
    ]
    assert len(inside) >= max(height * width / 2, 4)
    wrong = []
    for start in range(0, len(inside), 24):
        cells = inside[start : start + 24]
        seen = look(*(painted(size, layout, row, col) for row, col in cells))
        for cell, after in zip(cells, seen, strict=True):
            changed_HW = (after.images[-1]["vision"][0] - before_HWC).norm(dim=-1)
            found = divmod(int(changed_HW.argmax()), width)
            if found != cell:
                wrong.append((cell, found))
    assert not wrong, f"{len(wrong)} of {len(inside)} cells moved: {wrong[:5]}"
