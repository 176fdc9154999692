"""Load a multimodal language model (MLM), hub id or folder, through its Hugging Face classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kvfix import adapters
from kvfix.checkpoint import folder as checkpoint
from kvfix.mlm.families import FAMILIES, Family, family_of, submodule
from kvfix.mlm.language_models import LanguageModel, Part, Reading, language_model_of, reading
from kvfix.mlm.native import native_dtype
from kvfix.mlm.processor import load_processor, processor_sha256
from kvfix.mlm.prompt import Prompt
from kvfix.mlm.prompts import Encoded, ImageSpan, encode
from kvfix.mlm.reference import ReferenceEncoder, load_reference_encoder

__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "ImageSpan",
    "Mlm",
    "Prompt",
    "ReferenceEncoder",
    "load_mlm",
    "load_reference_encoder",
]


@dataclass(frozen=True, eq=False)
class Mlm:
    """A loaded multimodal language model."""

    id: str  # the id or folder it was asked for as
    # What to call: the Hugging Face model, or the PEFT model around it.
    model: Any = field(repr=False)
    processor: Any = field(repr=False)  # its processor
    family: Family = field(repr=False)  # its row of the family table
    # The checkpoint folder and what was read from it.
    weights: checkpoint.Weights = field(repr=False)
    adapter: adapters.Adapter | None  # the adapter folder, None without one
    dtype: torch.dtype  # of activations
    processor_id: str | None = None  # whose processor it is; None: the checkpoint's own
    # Image tokens of an image that is alone in its prompt, by (width, height), as they are learnt.
    tokens_of_size: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    @property
    def base(self) -> Any:
        """The Hugging Face model itself; LoRA layers, where there are any, sit inside it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def config(self) -> Any:
        """The Hugging Face config."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.base.device

    @property
    def n_layers(self) -> int:
        """Decoder layers of the language model."""
        return self.config.text_config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        """Query heads of a layer."""
        return self.config.text_config.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        """KV heads of a layer; query head h reads KV head h // (n_heads // n_kv_heads)."""
        return self.config.text_config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        text = self.config.text_config
        return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    @cached_property
    def sha256(self) -> str:
        """Of the weights: what `cat *.safetensors | sha256sum` prints (shards in order of names).

        Read on first use: hashing 16 GB takes about half a minute.
        """
        return self.weights.sha256()

    @cached_property
    def processor_sha256(self) -> str:
        """Of what in the processor can move a score."""
        return processor_sha256(self.processor)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its user has to know of it, a sentence each; they stand in run.json, too."""
        notes = self.family.notes(self.config)
        return notes if self.adapter is None else (*notes, *self.adapter.warnings)

    @property
    def revision(self) -> str | None:
        """Commit of a hub model, None for a folder."""
        return self.weights.revision

    @property
    def vision(self) -> Any:
        """The vision tower."""
        return submodule(self.base, self.family.vision)

    @property
    def projector(self) -> Any:
        """The projector."""
        return submodule(self.base, self.family.projector)

    @property
    def lm(self) -> Any:
        """The language model without its head."""
        return submodule(self.base, self.family.lm)

    def layer(self, number: int) -> Any:
        """A decoder layer of the language model, 0-based."""
        return submodule(self.lm, f"layers.{number}")

    @property
    def language_model(self) -> LanguageModel:
        """The language model's row of the table of language models."""
        return language_model_of(self.config.text_config.model_type, where=self.id)

    def reading(self, layer: int, part: Part) -> Reading:
        """Where a layer's queries, keys (both before RoPE) or values are read."""
        widths = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return reading(self.layer(layer).self_attn, self.language_model, part, widths=widths)

    def key_bias(self, layer: int) -> Tensor | None:
        """What a layer adds to every key, None for nothing: key statistics subtract it."""
        return self.reading(layer, "key").bias

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-word logits of last hidden states, as the model's own forward pass makes them."""
        logits = self.base.get_output_embeddings()(hidden)
        cap = self.family.logit_cap(self.config)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def lora_targets(self, *parts: str) -> str:
        """PEFT's `target_modules` for "lm", "projector" and/or "vision"; see `Family`."""
        return self.family.lora_targets(self.config, *parts)

    def encode(self, prompts: Sequence[Prompt], *, padding_side: str = "left") -> Encoded:
        """Turn prompts into one padded batch on the model's device and find every image's tokens in
        it.

        Every prompt has at least one RGB image, and no placeholder in its text; else it is a
        ValueError.
        """
        return encode(
            prompts,
            processor=self.processor,
            config=self.config,
            family=self.family,
            device=self.device,
            dtype=self.dtype,
            padding_side=padding_side,
        )


def load_mlm(
    id_or_dir: str,
    *,
    adapter: str | None = None,
    force_adapter: bool = False,
    processor: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    quant: str | None = None,
    attn: str | None = None,
    random_weights: int | None = None,
    recorded: bool = False,
) -> Mlm:
    """Load a model of a known family; nothing but safetensors and JSON is read from its folder.

    Args:
        id_or_dir: Hub id, or a folder (then no network is used).
        adapter: PEFT LoRA folder, or hub id. What its user has to know, such as that it may be of
            another model, is warned of and stands in `Mlm.warnings`.
        force_adapter: Load an adapter that was trained on another model, too.
        processor: Hub id or folder whose processor is taken instead of the checkpoint's own.
        dtype: "auto" is the checkpoint's own; "native" is that too, but float32 instead of bfloat16
            on a CPU that has no instructions for it.
        device: As torch names it, or "auto" to spread over devices; None is the GPU if there is
            one.
        quant: None, "nf4" or "int8": of the language model's weights, by bitsandbytes. The vision
            tower and the projector stay as they are.
        attn: "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.
        random_weights: A seed: the same architecture, freshly initialised, weights not read (a
            control).
        recorded: Begin to hash the weights beside the loading, for a record that names them.

    What does not fit, in files or options, is a ValueError or a FileNotFoundError.
    """
    _check_options(quant, random_weights, adapter)
    found = None if adapter is None else adapters.find(str(adapter))
    weights = checkpoint.find(str(id_or_dir), weights=random_weights is None, seed=random_weights)
    if recorded:
        weights.begin_hashing()
    where = str(weights.folder / "config.json")
    family = family_of(weights.config.get("model_type"), where=where)
    config = checkpoint.load_config(weights.folder)
    language_model_of(config.text_config.model_type, where=where)
    if found is not None:
        found = adapters.check_base(found, weights, name=str(id_or_dir), force=force_adapter)
    beside = weights.folder
    if processor is not None:
        beside, _ = checkpoint.locate(str(processor), weights=False)
    loaded_processor = load_processor(beside, config, family)
    if dtype == "native":
        where_to = checkpoint.pick_device(None if device == "auto" else device)
        dtype = "auto" if quant else native_dtype(config, where_to)
    if random_weights is not None:
        model = checkpoint.initialise(config, seed=random_weights, dtype=dtype, attn=attn)
        model.to(checkpoint.pick_device(device))
    else:
        keep = (family.vision, family.projector)
        model = checkpoint.load_model(
            weights.folder, dtype=dtype, device=device, quant=quant, attn=attn, keep=keep
        )
    computed = model.dtype
    if found is not None:
        model, found = adapters.load(
            model, found, processor=loaded_processor, known=family.old_names
        )
        for text in found.warnings:
            warnings.warn(text, adapters.AdapterWarning, stacklevel=2)
    return Mlm(
        id=str(id_or_dir),
        model=model.eval(),
        processor=loaded_processor,
        family=family,
        weights=weights,
        adapter=found,
        dtype=computed,
        processor_id=None if processor is None else str(processor),
    )


def _check_options(quant: str | None, random_weights: int | None, adapter: str | None) -> None:
    if quant not in (None, "nf4", "int8"):
        raise ValueError(f"expected quant to be 'nf4', 'int8' or None, found {quant!r}")
    if random_weights is not None and (quant or adapter):
        found = "quant" if quant else "adapter"
        raise ValueError(
            f"expected random_weights alone, found it with {found}: a control has no such weights"
        )
