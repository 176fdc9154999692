"""Tiny MLMs in the real Hugging Face architectures: tokenizer, chat template, processor and random
weights.

Same structure as the 7B models (vision tower -> projector -> grouped-query LM, tiled or
dynamic-resolution images), 80 x 80 pixels as 8 x 8 cells of 10 pixels. Used by `train_nano.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from initial import (
    ROTARY_BASE,
    lay_out_language,
    lay_out_pixels,
    lay_out_places,
    widen_words,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

WORDS = Path(__file__).with_name("words.json")
SIDE = 80  # pixels of a tile
PATCH = 10  # pixels of a cell
CELLS = (SIDE // PATCH) ** 2
PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]  # height, width
LAYERS = 10  # to choose takes two searches, one after the other
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "initializer_range": 0.04,  # the usual 0.02 is for widths in the thousands
}
TOWER: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}@IMAGE@{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}@IMAGE@\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


class Dialect(NamedTuple):
    """How a family writes a conversation down."""

    template: str
    specials: tuple[str, ...]
    image: str  # the token that stands for one image feature
    markup: str  # how the template writes an image down
    end: str  # closes a turn
    opener: str  # opens an answer


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = Dialect(
    CHATML.replace("@IMAGE@", QWEN_IMAGE),
    (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ),
    "<|image_pad|>",
    QWEN_IMAGE,
    "<|im_end|>",
    "<|im_start|>assistant\n",
)
ONEVISION = Dialect(
    CHATML.replace("@IMAGE@", "<image>\n"),
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    "<image>",
    "<image>\n",
    "<|im_end|>",
    "<|im_start|>assistant\n",
)
NEXT = Dialect(
    LLAMA3.replace("@IMAGE@", "<image>"),
    (
        *("<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
        *("<|end_header_id|>", "<image>"),
    ),
    "<image>",
    "<image>\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)


def train_tokenizer(dialect: Dialect) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 768 tokens.

    It is learned from `words.json`: how often each word (with the space before it) occurs in
    600 conversations and in the perception questions, whose words get whole tokens too although
    nothing is trained on them. Counted once, so that new sentences never change a vocabulary.
    """
    counts = json.loads(WORDS.read_text(encoding="utf-8"))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        (word for word, count in counts.items() for _ in range(count)),
        trainers.BpeTrainer(
            vocab_size=768,
            special_tokens=list(dialect.specials),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    extra = {"image_token": dialect.image}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=dialect.end,
        pad_token=dialect.specials[0],
        extra_special_tokens=extra,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


class Nano(NamedTuple):
    """A freshly initialised model and its processor.

    `crop` keeps of the image processor's output for B square images what one raster of image tokens
    needs, without the copies that the LM also gets (base tile, newlines). `see` turns it into the
    vision tower's features, (B, cells, width), `look` into image tokens, (B, cells, hidden).
    `places` gives positions of the tokens (B, L) of conversations about pictures: (B, L), or
    (3, B, L) where images have rows and columns.
    """

    model: Any  # a Hugging Face model class; their own types do not fit their use
    processor: Any
    dialect: Dialect
    crop: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    see: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    look: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    places: Callable[[Any, torch.Tensor], torch.Tensor]


def crop_tile(pixels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base tile of each image."""
    return {"pixel_values": pixels["pixel_values"][:, 0]}


def crop_raster(pixels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything: Qwen has no second copy."""
    return dict(pixels)


def see_tile(model: Any, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """The base tile through the tower, as far as the LLaVA models read it."""
    states = model.model.vision_tower(pixels["pixel_values"], output_hidden_states=True)
    chosen = states.hidden_states[model.config.vision_feature_layer]
    if model.config.vision_feature_select_strategy == "default":
        chosen = chosen[:, 1:]  # without the class token
    return chosen


def look_at_tile(model: Any, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """The base tile through tower and projector."""
    return model.model.multi_modal_projector(see_tile(model, pixels))


def look_at_raster(model: Any, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Merged patches in raster order, as Qwen gives them; merging is its projector."""
    return torch.stack(list(model.get_image_features(**pixels).pooler_output))


def places_in_line(model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
    """One token after the other."""
    return torch.arange(ids_BL.shape[1]).expand_as(ids_BL)


def places_in_rows(model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
    """M-RoPE: time, row and column."""
    at_BL = ids_BL == model.config.image_token_id
    side = 2 * SIDE // PATCH  # patches that are merged two by two
    grids = torch.tensor([[1, side, side]]).repeat(int(at_BL.sum()) // CELLS, 1)
    return model.model.get_rope_index(ids_BL, at_BL.int(), image_grid_thw=grids)[0]


def _ids(tokenizer: PreTrainedTokenizerFast, dialect: Dialect) -> dict[str, Any]:
    pad = tokenizer.convert_tokens_to_ids(dialect.specials[0])
    begin = "<|begin_of_text|>"
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.convert_tokens_to_ids(begin)
        if begin in dialect.specials
        else pad,
        "eos_token_id": tokenizer.convert_tokens_to_ids(dialect.end),
        "pad_token_id": pad,
    }


def build_onevision() -> Nano:
    """SigLIP tower, Qwen2 LM, base tile and tile mosaic with newline tokens."""
    tok = train_tokenizer(ONEVISION)
    image_id = tok.convert_tokens_to_ids("<image>")
    tower = SiglipVisionConfig(**TOWER, num_hidden_layers=4, vision_use_head=False)
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=Qwen2Config(**TEXT, **_ids(tok, ONEVISION), rope_theta=ROTARY_BASE),
        image_token_id=image_id,
        video_token_id=tok.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=True,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tok,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=CELLS,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION.template,
    )
    return Nano(
        LlavaOnevisionForConditionalGeneration(config),
        processor,
        ONEVISION,
        crop_tile,
        see_tile,
        look_at_tile,
        places_in_line,
    )


def build_qwen() -> Nano:
    """Qwen2.5-VL: window attention, 2 x 2 merging, M-RoPE, key biases."""
    tok = train_tokenizer(QWEN)
    ids = {n: tok.convert_tokens_to_ids(f"<|{n}|>") for n in ("vision_start", "vision_end")}
    head = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    rope = {
        "rope_type": "default",
        "rope_theta": ROTARY_BASE,
        "mrope_section": [head // 2 - 10, 5, 5],
    }
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **_ids(tok, QWEN), "rope_parameters": rope},
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_heads": 4,
            "patch_size": PATCH // 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": SIDE // 2,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": TEXT["hidden_size"],
        },
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    pixels = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    patches = {"patch_size": PATCH // 2, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer=tok,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **patches),
        chat_template=QWEN.template,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    return Nano(model, processor, QWEN, crop_raster, look_at_raster, look_at_raster, places_in_rows)


def build_next() -> Nano:
    """CLIP tower read at its second last layer, Llama LM, anyres tiles in every image.

    Attention has biases, as in the LLaVA-NeXT models on Qwen: see `lay_out_language`.
    """
    tok = train_tokenizer(NEXT)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, num_hidden_layers=5, projection_dim=128),
        text_config=LlamaConfig(
            **TEXT, **_ids(tok, NEXT), rope_theta=ROTARY_BASE, attention_bias=True
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=CELLS,
        tie_word_embeddings=True,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=NEXT.template,
    )
    model = LlavaNextForConditionalGeneration(config)
    return Nano(model, processor, NEXT, crop_tile, see_tile, look_at_tile, places_in_line)


BUILDERS: dict[str, Callable[[], Nano]] = {
    "llava_onevision": build_onevision,
    "qwen2_5_vl": build_qwen,
    "llava_next": build_next,
}


def build_nano(family: str, *, seed: int) -> Nano:
    """A random nano of one family.

    Raises:
        ValueError: a family without a nano.
    """
    if family not in BUILDERS:
        raise ValueError(f"family: expected one of {', '.join(BUILDERS)}, found {family!r}")
    torch.manual_seed(seed)
    nano = BUILDERS[family]()
    lay_out_places(nano.model, SIDE // PATCH)
    lay_out_pixels(nano.model, PATCH)
    widen_words(nano.model, TEXT["initializer_range"])
    lay_out_language(nano.model)
    settings = nano.model.generation_config
    settings.eos_token_id = nano.processor.tokenizer.eos_token_id
    settings.pad_token_id = nano.processor.tokenizer.pad_token_id
    return nano
