"""The family table: all that kvfix knows about one kind of model and not about another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from kvfix.adapters.naming import LLAVA_NAMES, QWEN_NAMES
from kvfix.checkpoint import processor_fields as fields
from kvfix.checkpoint.strangers import model_type_hint
from kvfix.mlm.family import Family
from kvfix.mlm.images import llava, mosaic, qwen, shapes
from kvfix.mlm.language_models import sliding_window
from kvfix.wording import shown

__all__ = ["FAMILIES", "REFUSED", "Family", "family_of", "submodule"]

# Known, and not read.
REFUSED = {
    "mllama": "its image keys and values stand in cross-attention layers alone, which no image "
    "token passes: there is no value for a cell in the other layers",
}


def family_of(model_type: str | None, *, where: str) -> Family:
    """The row of a model type of config.json; `where` is named in the error."""
    if model_type not in FAMILIES:
        why = REFUSED.get(str(model_type))
        hint = f"; {why}" if why else model_type_hint(model_type)
        raise ValueError(
            f"{where}: expected model_type to be one of {', '.join(sorted(FAMILIES))}, found "
            f"{shown(model_type)}{hint}"
        )
    return FAMILIES[model_type]


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, looked up anew because PEFT swaps modules in place."""
    return model.get_submodule(path)


_MLP_LORA = r"model\.multi_modal_projector\.linear_[12]"
_BLOCKS = r"model\.visual\.blocks\.\d+\."
_NONE = r"(?!)"  # a part without a linear layer
_GATED_MLP = r"mlp\.(gate|up|down)_proj"


def _tower_lora(config: Any) -> str:
    """Up to the selected feature layer: number k is what layer k - 1 puts out."""
    chosen = getattr(config, "vision_feature_layer", -1)
    depth = config.vision_config.num_hidden_layers
    last = max(k % (depth + 1) for k in ([chosen] if isinstance(chosen, int) else chosen))
    layers = "|".join(str(k) for k in range(last))
    # CLIP and SigLIP name the list `layers` and the output `out_proj`, DINOv2 `layer` and `o_proj`,
    # InternVL's tower `layer` and `projection_layer`.
    return (
        rf"model\.vision_(tower|model)\.encoder\.layers?\.({layers})"
        r"\.((self_attn|attention)\.(([qkvo]|out)_proj|projection_layer)"
        r"|mlp\.(fc[12]|gate_proj|up_proj|down_proj))"
    )


def _tower_channels(config: Any) -> int:
    """Of the chosen feature layers side by side."""
    chosen = getattr(config, "vision_feature_layer", -1)
    return config.vision_config.hidden_size * (1 if isinstance(chosen, int) else len(chosen))


def _tiles_row(**row: Any) -> Family:
    """A family with a tower of tiles under the names of LLaVA, unless told otherwise."""
    usual: dict[str, Any] = {
        "vision": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "lm": "model.language_model",
        "patches_a_token": lambda config: 1,
        "channels": _tower_channels,
        "lora_projector": _MLP_LORA,
        "lora_vision": _tower_lora,
        "positions_from_mask": True,
        "pixels": fields.square_pixels,
    }
    return Family(**usual | row)


def _llava_row(model_type: str, upstream: str, **row: Any) -> Family:
    """A family that older checkpoints hold under LLaVA's older names."""
    return _tiles_row(model_type=model_type, upstream=upstream, old_names=LLAVA_NAMES, **row)


def _raster_row(**row: Any) -> Family:
    """A family whose tower is given patches of whole images, with M-RoPE, unless told otherwise."""
    usual: dict[str, Any] = {
        "vision": "model.visual",
        "projector": "model.visual.merger",
        "lm": "model.language_model",
        "patches_a_token": lambda config: config.vision_config.spatial_merge_size**2,
        "layouts": qwen.raster_layouts,
        "positions_from_mask": False,
        "image_shapes": shapes.patch_rows,
        "fields": fields.qwen_fields,
        "pixels": fields.patch_pixels,
        "grids": shapes.limited_grids,
        "cut": "the whole image in patches, merged by two and two",
        "videos": True,
    }
    return Family(**usual | row)


def _deepstack(config: Any) -> tuple[str, ...]:
    """Qwen3-VL adds features of earlier tower layers to image tokens after its first LM layers."""
    levels = len(config.vision_config.deepstack_visual_indexes)
    return (
        f"deepstack: features of {levels} earlier layers of the vision tower are added to image "
        f"tokens after language-model layers 0 to {levels - 1}: what layers 1 to {levels} read "
        "comes from several levels of the tower, not from the projector alone",
    )


_QWEN3_VL = _raster_row(
    model_type="qwen3_vl",
    lora_projector=r"model\.visual\.merger\.linear_fc[12]",
    lora_vision=lambda config: _BLOCKS + r"(attn\.(qkv|proj)|mlp\.linear_fc[12])",
    processor="Qwen3VLProcessor",
    upstream="Qwen/Qwen3-VL-4B-Instruct",
    image_shapes=shapes.placed_patch_rows,
    notes=_deepstack,
)

# The tower is given tiles in a batch of samples, and leaves out those that only pad a sample.
_IDEFICS3 = _tiles_row(
    model_type="idefics3",
    cut="tiles, then the whole image as one",
    vision="model.vision_model",
    projector="model.connector",
    lm="model.text_model",
    merged="model.connector.modality_projection",
    channels=lambda config: config.vision_config.hidden_size * config.scale_factor**2,
    lora_projector=r"model\.connector\.modality_projection\.proj",
    layouts=mosaic.idefics3_layouts,
    image_shapes=shapes.masked_tiles,
    pictures=shapes.of_idefics3,
    processor="Idefics3Processor",
    fields=fields.idefics3_fields,
    pixels=fields.tile_pixels,
    expand=mosaic.idefics3_text,
    upstream="HuggingFaceM4/Idefics3-8B-Llama3",
)


def _gemma3_notes(config: Any) -> tuple[str, ...]:
    """Image tokens see all of their image; most layers look back on a window only."""
    text = config.text_config
    near = sum(sliding_window(text, layer) is not None for layer in range(text.num_hidden_layers))
    return (
        "image tokens attend to all tokens of their image, to later ones, too; "
        f"{near} of {text.num_hidden_layers} layers look back on {text.sliding_window} tokens only",
    )


# As its processor prints one picture and one text, and answers that follow.
_PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<eos>"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% if loop.last or loop.nextitem['type'] != 'image' %}<bos>{% endif %}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endif %}{% endfor %}"
)


def _as_the_template_says(processor: Any) -> None:
    """PaliGemma's processor adds a begin token and a line break, which its template here prints."""
    from transformers import ProcessorMixin

    processor.prepare_inputs_layout = ProcessorMixin.prepare_inputs_layout.__get__(processor)


def _paligemma_notes(config: Any) -> tuple[str, ...]:
    """All of a prompt sees all of it: what is asked reaches the image."""
    return (
        "all tokens of a prompt attend to one another: text after an image changes its values, "
        "too, so that they depend on what was asked",
    )


_ROWS = (
    _llava_row(
        "llava",
        "llava-hf/llava-1.5-7b-hf",
        cut="one tile",
        layouts=llava.llava_layouts,
        image_shapes=shapes.one_tile,
        processor="LlavaProcessor",
        fields=fields.llava_fields,
    ),
    _llava_row(
        "llava_next",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        cut="a base tile, then a mosaic of tiles",
        layouts=llava.llava_next_layouts,
        image_shapes=shapes.tiles,
        processor="LlavaNextProcessor",
        fields=fields.llava_next_fields,
    ),
    _llava_row(
        "llava_onevision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        cut="a base tile, then a mosaic of tiles; of several images a tile each",
        layouts=llava.llava_onevision_layouts,
        image_shapes=shapes.counted_tiles,
        processor="LlavaOnevisionProcessor",
        fields=fields.llava_onevision_fields,
    ),
    _raster_row(
        model_type="qwen2_vl",
        channels=lambda config: (
            config.vision_config.embed_dim * config.vision_config.spatial_merge_size**2
        ),
        lora_projector=r"model\.visual\.merger\.mlp\.[02]",
        lora_vision=lambda config: _BLOCKS + r"(attn\.(qkv|proj)|mlp\.fc[12])",
        processor="Qwen2VLProcessor",
        upstream="Qwen/Qwen2-VL-7B-Instruct",
        old_names=QWEN_NAMES,
    ),
    _raster_row(
        model_type="qwen2_5_vl",
        layouts=qwen.window_layouts,
        lora_projector=r"model\.visual\.merger\.mlp\.[02]",
        lora_vision=lambda config: _BLOCKS + rf"(attn\.(qkv|proj)|{_GATED_MLP})",
        processor="Qwen2_5_VLProcessor",
        upstream="Qwen/Qwen2.5-VL-7B-Instruct",
        image_shapes=shapes.windowed_patch_rows,
        old_names=QWEN_NAMES,
    ),
    _QWEN3_VL,
    replace(_QWEN3_VL, model_type="qwen3_vl_moe", upstream="Qwen/Qwen3-VL-30B-A3B-Instruct"),
    _IDEFICS3,
    replace(
        _IDEFICS3,
        model_type="smolvlm",
        processor="SmolVLMProcessor",
        needs="the package num2words (pip install num2words), for its processor",
        upstream="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    _tiles_row(
        model_type="internvl",
        cut="up to twelve tiles, then the whole image as one",
        channels=lambda config: int(config.vision_config.hidden_size / config.downsample_ratio**2),
        layouts=mosaic.internvl_layouts,
        image_shapes=shapes.stretched_tiles,
        processor="InternVLProcessor",
        fields=fields.internvl_fields,
        pixels=fields.tile_pixels,
        expand=lambda processor, layout: (
            processor.start_image_token
            + processor.image_token * layout.n_tokens
            + processor.end_image_token
        ),
        upstream="OpenGVLab/InternVL3_5-8B-HF",
    ),
    _tiles_row(
        model_type="gemma3",
        cut="one tile, patches averaged",
        needs="do_pan_and_scan off",
        merged="model.multi_modal_projector.mm_soft_emb_norm",
        lora_projector=_NONE,
        layouts=mosaic.gemma3_layouts,
        image_shapes=shapes.stretched_tiles,
        processor="Gemma3Processor",
        fields=fields.gemma3_fields,
        placed=lambda processor: processor.tokenizer.image_token,
        expand=lambda processor, layout: processor.full_image_sequence,
        sees_ahead="image",
        upstream="google/gemma-3-4b-it",
        notes=_gemma3_notes,
    ),
    _tiles_row(
        model_type="paligemma",
        cut="one tile",
        needs="an image in every prompt, no system turn",
        lora_projector=r"model\.multi_modal_projector\.linear",
        layouts=mosaic.paligemma_layouts,
        image_shapes=shapes.stretched_tiles,
        processor="PaliGemmaProcessor",
        fields=fields.paligemma_fields,
        sees_ahead="prompt",
        first_position=1,
        template=_PALIGEMMA_TEMPLATE,
        prepare=_as_the_template_says,
        logit_cap=lambda config: getattr(config.text_config, "final_logit_softcapping", None),
        upstream="google/paligemma2-3b-mix-224",
        notes=_paligemma_notes,
    ),
    _raster_row(
        model_type="glm4v",
        videos=False,
        merged="model.visual.merger",
        channels=lambda config: config.vision_config.out_hidden_size,
        lora_projector=r"model\.visual\.merger\.((gate|up|down)_proj|proj)",
        lora_vision=lambda config: _BLOCKS + rf"(attn\.(qkv|proj)|{_GATED_MLP})",
        grids=shapes.glm_grids,
        pictures=shapes.of_glm,
        processor="Glm4vProcessor",
        upstream="zai-org/GLM-4.1V-9B-Thinking",
    ),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}
