"""Tiny random models of the real Hugging Face classes, with processor, tokenizer and template.

`build(family, folder)` writes a checkpoint folder in well under a second.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Glm4Config,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolLM3Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

FAMILIES = ("llava_onevision", "qwen2_5_vl", "llava_next", "llava")
# Those that slow tests leave out.
MORE = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "idefics3", "internvl", "gemma3", "glm4v")
MORE += ("paligemma",)
EVERY = (*FAMILIES, *MORE)
SPECIALS = [
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PINPOINTS = [[48, 48], [48, 96], [96, 48], [96, 96], [48, 144], [144, 48]]
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Byte-level: every text has tokens, and no text is an unknown token.

    Args:
        named: Special tokens by the attribute that a processor asks the tokenizer for.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        model_specific_special_tokens=named,
    )
    made.add_special_tokens({"additional_special_tokens": [*SPECIALS, *named.values()]})
    return made


def _lm_config(tok: PreTrainedTokenizerFast, kind: Any, **more: Any) -> Any:
    pad, eos = tok.pad_token_id, tok.eos_token_id
    return kind(
        vocab_size=len(tok), pad_token_id=pad, eos_token_id=eos, bos_token_id=None, **_LM | more
    )


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, **more}


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(intermediate_size=48, image_size=48, patch_size=8, **_TOWER)


def _clip_pixels() -> dict[str, Any]:
    return {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


def llava_onevision(*, max_tiles: int = 9, image_size: int = 48, **vision: Any) -> tuple[Any, Any]:
    """SigLIP tower, no CLS; `max_tiles` small makes mosaics shrink."""
    tok, aspect = tokenizer(), f"anyres_max_{max_tiles}"
    tower = SiglipVisionConfig(
        **{
            "intermediate_size": 48,
            "image_size": image_size,
            "patch_size": 8,
            "vision_use_head": False,
        }
        | _TOWER
        | vision
    )
    side = tower.image_size // tower.patch_size
    pinpoints = [[h * image_size // 48, w * image_size // 48] for h, w in PINPOINTS]
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=_lm_config(tok, Qwen2Config),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect,
        vision_feature_layer=-1,
    )
    pixels = {"height": image_size, "width": image_size}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=pixels, image_grid_pinpoints=pinpoints),
        tok,
        LlavaOnevisionVideoProcessor(size=pixels),
        num_image_tokens=side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Patches of 4 px, merged 2 x 2, windows of 2 x 2 merged cells."""
    tok = tokenizer()
    ids = {
        name: tok.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tok),
            "pad_token_id": tok.pad_token_id,
            "eos_token_id": tok.eos_token_id,
            "bos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
            **_LM,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 96 * 96},
    }
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tok,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad"}
    names |= {"vision_start": "vision_start", "vision_end": "vision_end"}
    return {
        f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in names.items()
    }


def _mrope_lm(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    rope = _rope(mrope_section=[2, 1, 1])
    pad, eos = tok.pad_token_id, tok.eos_token_id
    ids = {"vocab_size": len(tok), "pad_token_id": pad, "eos_token_id": eos, "bos_token_id": None}
    return {"rope_parameters": rope, **ids, **_LM} | more


def _small_patches(kind: Any, image_processor: Any, video_processor: Any) -> Any:
    """A Qwen processor for patches of 4 px, merged 2 x 2."""
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 96 * 96},
    }
    return kind(
        image_processor(**pixels),
        tokenizer(),
        video_processor(**pixels),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def qwen2_vl() -> tuple[Any, Any]:
    """As Qwen2.5-VL, without windows."""
    tok = tokenizer()
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        vision_config=tower | {"patch_size": 4, "spatial_merge_size": 2},
        text_config=_mrope_lm(tok),
        **_qwen_ids(tok),
    )
    processor = _small_patches(Qwen2VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor)
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen3_config(kind: Any, **text: Any) -> Any:
    tok = tokenizer()
    tower = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    levels = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    return kind(
        vision_config=tower
        | levels
        | {"patch_size": 4, "spatial_merge_size": 2, "out_hidden_size": 32},
        text_config=_mrope_lm(tok, head_dim=8, **text),
        **_qwen_ids(tok),
    )


def qwen3_vl() -> tuple[Any, Any]:
    """Deepstack after the first two layers of three, interleaved M-RoPE."""
    processor = _small_patches(Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor)
    return Qwen3VLForConditionalGeneration(_qwen3_config(Qwen3VLConfig)), processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    """The same with experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    processor = _small_patches(Qwen3VLProcessor, Qwen2VLImageProcessor, Qwen3VLVideoProcessor)
    config = _qwen3_config(Qwen3VLMoeConfig, **experts)
    return Qwen3VLMoeForConditionalGeneration(config), processor


def idefics3(*, image_size: int = 48, smol: bool = False) -> tuple[Any, Any]:
    """Tiles of 6 x 6 patches, merged 2 x 2; the longer side has four of them."""
    tok = tokenizer(
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    tower = {"intermediate_size": 48, "image_size": image_size, "patch_size": 8, **_TOWER}
    made, model, processor, images = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMImageProcessor)
        if smol
        else (
            Idefics3Config,
            Idefics3ForConditionalGeneration,
            Idefics3Processor,
            Idefics3ImageProcessor,
        )
    )
    config = made(
        vision_config=tower,
        text_config=_lm_config(tok, LlamaConfig).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = images(
        size={"longest_edge": 4 * image_size}, max_image_size={"longest_edge": image_size}
    )
    given = (pixels, tok, SmolVLMVideoProcessor()) if smol else (pixels, tok)
    template = TEMPLATE.replace("IMAGE", "<image>")
    return model(config), processor(*given, image_seq_len=9, chat_template=template)


def internvl(*, text: tuple[Any, dict[str, Any]] = (Qwen2Config, {})) -> tuple[Any, Any]:
    """Up to six tiles of 6 x 6 patches, merged 2 x 2, and a thumbnail."""
    tok = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 48, "width": 48}
    config = InternVLConfig(
        vision_config={"intermediate_size": 48, "image_size": 48, "patch_size": 8, **_TOWER},
        text_config=_lm_config(tok, text[0], **text[1]).to_dict(),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, max_patches=6),
        tok,
        InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return InternVLForConditionalGeneration(config), processor


def gemma3(*, window: int = 512) -> tuple[Any, Any]:
    """One tile of 6 x 6 patches, averaged 2 x 2; layers 0 and 2 look back on a window."""
    tok = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    config = Gemma3Config(
        vision_config={
            "intermediate_size": 48,
            "image_size": 48,
            "patch_size": 8,
            "vision_use_head": False,
            **_TOWER,
        },
        text_config=_lm_config(
            tok, Gemma3TextConfig, head_dim=8, sliding_window=window, sliding_window_pattern=2
        ).to_dict(),
        image_token_index=tok.convert_tokens_to_ids("<soft>"),
        boi_token_index=tok.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tok.convert_tokens_to_ids("<eoi>"),
        mm_tokens_per_image=9,
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 48, "width": 48}),
        tok,
        image_seq_length=9,
        chat_template=TEMPLATE.replace("IMAGE", "<boi>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def paligemma(*, window: int = 512) -> tuple[Any, Any]:
    """One tile of 6 x 6 patches; no chat template of its own, Gemma 2 inside."""
    tok = tokenizer(image_token="<image>")
    tok.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    images = SiglipImageProcessor(size={"height": 48, "width": 48})
    images.image_seq_length = 36
    processor = PaliGemmaProcessor(images, tok)  # adds words of its own
    config = PaliGemmaConfig(
        vision_config={
            "intermediate_size": 48,
            "image_size": 48,
            "patch_size": 8,
            "vision_use_head": False,
            "projection_dim": 32,
            **_TOWER,
        },
        text_config=_lm_config(tok, Gemma2Config, head_dim=8, sliding_window=window).to_dict(),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def glm4v() -> tuple[Any, Any]:
    """Patches of 4 px, merged 2 x 2 by a convolution; RoPE on six of eight channels."""
    named = {"image": "<|image|>", "video": "<|video|>"}
    named |= {f"{kind}_{end}": f"<|{word}_of_{kind}|>" for kind in ("image", "video")
              for end, word in (("start", "begin"), ("end", "end"))}  # fmt: skip
    tok = tokenizer(**{f"{name}_token": token for name, token in named.items()})
    config = Glm4vConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "image_size": 24,
            "patch_size": 4,
            "out_hidden_size": 32,
            "intermediate_size": 48,
        },
        text_config=_mrope_lm(
            tok, rope_parameters=_rope(mrope_section=[1, 1, 1], partial_rotary_factor=0.75)
        ),
        **{f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    pixels = {
        "patch_size": 4,
        "merge_size": 2,
        "size": {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 96 * 96},
    }
    template = TEMPLATE.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    processor = Glm4vProcessor(
        Glm4vImageProcessor(**pixels), tok, Glm4vVideoProcessor(**pixels), chat_template=template
    )
    return Glm4vForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """CLIP tower; CLS dropped."""
    tok = tokenizer()
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=_lm_config(tok, LlamaConfig),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **_clip_pixels()),
        tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava(
    *,
    tower: Any = None,
    pixels: Any = None,
    strategy: str = "default",
    extra: int = 1,
    layer: int | list[int] = -2,
    width: int = 32,
    text: tuple[Any, dict[str, Any]] = (LlamaConfig, {}),
) -> tuple[Any, Any]:
    """CLIP tower with a centre crop, and a Llama, unless told otherwise."""
    tok, (kind, more) = tokenizer(), text
    config = LlavaConfig(
        vision_config=tower or _clip(),
        text_config=_lm_config(
            tok, kind, **{"hidden_size": width, "intermediate_size": 2 * width} | more
        ),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaProcessor(
        pixels or LlavaImageProcessor(**_clip_pixels()),
        tok,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return LlavaForConditionalGeneration(config), processor


def llava_siglip() -> tuple[Any, Any]:
    """A tower without CLS, nothing dropped."""
    tower = SiglipVisionConfig(
        intermediate_size=48, image_size=48, patch_size=8, vision_use_head=False, **_TOWER
    )
    pixels = LlavaImageProcessor(size={"height": 48, "width": 48}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels, strategy="full", extra=0)


def llava_dinov2() -> tuple[Any, Any]:
    """A DINOv2 tower whose processor stretches instead of cropping, to another size."""
    tower = Dinov2Config(mlp_ratio=2, image_size=64, patch_size=8, **_TOWER)
    pixels = LlavaImageProcessor(size={"height": 48, "width": 56}, do_center_crop=False)
    return llava(tower=tower, pixels=pixels)


def llava_full() -> tuple[Any, Any]:
    """CLS kept, two feature layers side by side, pixels padded to a square."""
    pixels = LlavaImageProcessor(do_pad=True, **_clip_pixels())
    return llava(pixels=pixels, strategy="full", layer=[-2, -1])


def llava_with(kind: Any, **more: Any) -> tuple[Any, Any]:
    """Another language model under the same tower."""
    return llava(text=(kind, more))


def llava_bare_clip() -> tuple[Any, Any]:
    """The image processor of the first LLaVA-1.5 checkpoints; its crop is not whole patches."""
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 50, "width": 50})
    tower = CLIPVisionConfig(intermediate_size=48, image_size=50, patch_size=8, **_TOWER)
    return llava(tower=tower, pixels=pixels)


BUILDERS = {
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "idefics3": idefics3,
    "idefics3_gaps": lambda: idefics3(image_size=52),
    "internvl": internvl,
    "internvl_qwen3": lambda: internvl(text=(Qwen3Config, {"head_dim": 8})),
    "gemma3": gemma3,
    "gemma3_near": lambda: gemma3(window=12),
    "glm4v": glm4v,
    "paligemma": paligemma,
    "paligemma_near": lambda: paligemma(window=12),
    "llava_next": llava_next,
    "llava": llava,
    "llava_siglip": llava_siglip,
    "llava_dinov2": llava_dinov2,
    "llava_full": llava_full,
    "llava_bare_clip": llava_bare_clip,
    "llava_wide": lambda: llava(width=64),  # bitsandbytes wants whole blocks of 64
    "llava_gemma2": lambda: llava_with(Gemma2Config, head_dim=8, sliding_window=20),
    "llava_gemma3": lambda: llava_with(
        Gemma3TextConfig, head_dim=16, sliding_window=20, sliding_window_pattern=2
    ),
    "llava_glm4": lambda: llava_with(Glm4Config, head_dim=8),
    "llava_mistral": lambda: llava_with(MistralConfig, head_dim=8, sliding_window=20),
    "llava_phi3": lambda: llava_with(
        Phi3Config, rope_parameters=_rope(partial_rotary_factor=0.5), sliding_window=None
    ),
    "llava_qwen3": lambda: llava_with(Qwen3Config, head_dim=16, attention_bias=True),
    "llava_smollm3": lambda: llava_with(SmolLM3Config, no_rope_layer_interval=2),
    "onevision_shrunk": lambda: llava_onevision(max_tiles=1),
    "onevision_gaps": lambda: llava_onevision(image_size=52),
}
if find_spec("num2words"):  # without it transformers has no processor for SmolVLM
    BUILDERS["smolvlm"] = lambda: idefics3(smol=True)


def build(
    name: str, folder: Path | str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the checkpoint folder of one of BUILDERS."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = BUILDERS[name]()
        # Fresh biases are zero and norms one: move them, or no test would see them dropped.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.any():
                parameter.data.mul_(4)
            else:  # Gemma 3's projector, InternVL's positions
                parameter.data.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """A smooth random image: resampling changes it little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
