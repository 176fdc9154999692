"""What tiny models have in common: words, template, sizes, a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

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
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% elif c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PINPOINTS = [[48, 48], [48, 96], [96, 48], [96, 96], [48, 144], [144, 48]]
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LM = {
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


def lm_config(tok: PreTrainedTokenizerFast, kind: Any, **more: Any) -> Any:
    pad, eos = tok.pad_token_id, tok.eos_token_id
    return kind(
        vocab_size=len(tok), pad_token_id=pad, eos_token_id=eos, bos_token_id=None, **LM | more
    )


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, **more}


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(intermediate_size=48, image_size=48, patch_size=8, **TOWER)


def clip_pixels() -> dict[str, Any]:
    return {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


def photo(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """A smooth random image: resampling changes it little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)
