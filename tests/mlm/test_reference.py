"""Bare vision encoders of every known kind: their features lie where the layout says."""

from __future__ import annotations

import pytest
import tiny
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from kvfix.eval.grid import cell_centres
from kvfix.mlm.load import load_reference_encoder

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_TEXT = {**_VISION, "vocab_size": 20}
_GRID = {"image_size": 48, "patch_size": 8}


def _encoder(kind: str):
    crop = {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}
    if kind == "clip":
        config = CLIPConfig(vision_config={**_VISION, **_GRID}, text_config=_TEXT)
        return CLIPModel(config), CLIPImageProcessor(**crop)
    if kind == "siglip":
        config = SiglipConfig(vision_config={**_VISION, **_GRID}, text_config=_TEXT)
        return SiglipModel(config), SiglipImageProcessor(size={"height": 48, "width": 48})
    if kind == "siglip2":
        config = Siglip2VisionConfig(**_VISION, patch_size=8, num_patches=36)
        return Siglip2VisionModel(config), Siglip2ImageProcessor(patch_size=8, max_num_patches=40)
    if kind == "dinov2":
        config = Dinov2Config(**_VISION, **_GRID, mlp_ratio=2)
        return Dinov2Model(config), BitImageProcessor(**crop)
    config = Dinov2WithRegistersConfig(**_VISION, **_GRID, mlp_ratio=2, num_register_tokens=4)
    return Dinov2WithRegistersModel(config), BitImageProcessor(**crop)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dinov2", "registers"])
def test_reference_features_lie_where_the_layout_says(kind, tmp_path):
    model, processor = _encoder(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reference = load_reference_encoder(str(tmp_path))
    for name, parameter in reference.model.named_parameters():
        if ".out_proj." in name or ".o_proj." in name or "attention.output" in name:
            parameter.data.zero_()  # no mixing between patches
    blank = Image.new("RGB", (140, 90), (90, 90, 90))
    (before, layout), _ = reference.features([blank, tiny.photo(50, 50)])
    assert before.shape == (1, *layout.grid_hw, 32)
    height, width = layout.grid_hw
    assert height * width >= 30
    if kind == "siglip2":
        assert height != width
    cells = [(0, 0), (0, width - 1), (height - 1, 0), (height // 2, 1), (height - 1, width - 1)]
    for row, col in cells:
        painted = blank.copy()
        x, y = cell_centres(layout)[row, col].tolist()
        painted.paste((120, 120, 120), (round(x) - 4, round(y) - 4, round(x) + 4, round(y) + 4))
        after = reference.features([painted])[0].f_1HWC
        found = divmod(int((after - before)[0].norm(dim=-1).argmax()), width)
        assert found == (row, col)


def test_reference_errors(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"expected model_type to be one of clip, .*found 'llava'"):
        load_reference_encoder(str(checkpoint("llava")))
    model, processor = _encoder("dinov2")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reference = load_reference_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"expected at least one image"):
        reference.features([])
    with pytest.raises(ValueError, match=r"expected RGB images, found L"):
        reference.features([Image.new("L", (60, 60))])
