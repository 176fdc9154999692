"""Tokens that an adapter's training added: its tokenizer, and embeddings of another length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfix.adapters.folder import Adapter
from kvfix.adapters.naming import Naming
from kvfix.adapters.tensors import module_of
from kvfix.wording import cause, shown

_FILES = ("tokenizer.json", "tokenizer_config.json")


def fit_vocabulary(model: Any, processor: Any, adapter: Adapter, naming: Naming) -> list[str]:
    """Give model and processor, in place, the adapter's vocabulary; say what was done."""
    rows = _rows(adapter, naming, model)
    now = model.get_input_embeddings().weight.shape[0]
    said = []
    tokenizer = _tokenizer(adapter.folder)
    if tokenizer is not None:
        added = _added(processor.tokenizer, tokenizer, adapter.folder)
        if added:
            processor.tokenizer = tokenizer
            names = ", ".join(shown(token, 30) for token in added[:3])
            said.append(
                f"{adapter.folder}: its tokenizer is used, which has {len(added)} tokens that the "
                f"model's has not: {names}{' ...' if len(added) > 3 else ''}"
            )
        template = tokenizer.chat_template
        if isinstance(template, str) and template.strip() != str(processor.chat_template).strip():
            said.append(
                f"{adapter.folder}: its tokenizer has another chat template than the model; the "
                "model's is used"
            )
    if rows is None or rows == now:
        return said
    if rows > now and tokenizer is None:
        raise ValueError(
            f"{adapter.folder}: expected embeddings of {now} rows, as the model has, found {rows}: "
            "tokens were added in its training; put the tokenizer that was trained with beside it "
            "(tokenizer.json, tokenizer_config.json)"
        )
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"{adapter.folder}: expected embeddings of at least {len(processor.tokenizer)} rows, "
            f"one for each token, found {rows}"
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
    return said


def _rows(adapter: Adapter, naming: Naming, model: Any) -> int | None:
    """Length of the embeddings that the adapter's tensors are made for; None if it has none."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name for name, module in model.named_modules() if any(module is e for e in ends)}
    found = {
        length
        for name, shape in adapter.tensors.shapes.items()
        if naming.now(module_of(name)) in names
        for length in _length(name, shape)
    }
    if len(found) > 1:
        raise ValueError(
            f"{adapter.file}: expected embeddings of one length, found {sorted(found)[:4]}"
        )
    return found.pop() if found else None


def _length(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "lora_embedding_A" in name and len(shape) == 2:
        return (shape[1],)
    if "lora_A" in name or "lora_embedding" in name or "trainable_tokens" in name:
        return ()
    if name.endswith(".weight") and shape and "magnitude" not in name:
        return (shape[0],)
    return ()


def _tokenizer(folder: Path) -> Any | None:
    if not all((folder / file).is_file() for file in _FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises a bare Exception on a damaged file
        raise ValueError(
            f"{folder}: expected a tokenizer in tokenizer.json, found {cause(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{folder}: expected a fast tokenizer (tokenizer.json), found a slow one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _added(base: Any, other: Any, folder: Path) -> list[str]:
    """Tokens that the adapter's tokenizer has and the model's has not, in their order."""
    mine, theirs = base.get_vocab(), other.get_vocab()
    moved = [token for token, number in mine.items() if theirs.get(token) != number]
    if moved:
        raise ValueError(
            f"{folder}: expected a tokenizer that knows the model's tokens, found one without "
            f"{len(moved)} of {len(mine)} or with other numbers, such as {shown(min(moved))}; it "
            "belongs to another model"
        )
    return sorted(theirs.keys() - mine.keys(), key=theirs.__getitem__)
