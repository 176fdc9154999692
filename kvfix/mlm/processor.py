"""Processors: load one, fill what its files lack from config.json, and prove that it fits.

What a checkpoint's files leave open and its config determines is filled in (see
`kvfix.checkpoint.processor_fields`); what they state otherwise is refused, by field and file. At
last one small picture goes through the processor: it must put as many image tokens as the model
makes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from kvfix.checkpoint.processor_fields import Field, same
from kvfix.data.json_object import json_object
from kvfix.mlm.families import Family
from kvfix.mlm.layout import LayoutRequest
from kvfix.wording import cause, shown

_FILES = ("processor_config.json", "preprocessor_config.json")
_PIXEL_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("image_grid_pinpoints", "patch_size", "merge_size", "temporal_patch_size"),
)
_COUNTS = (
    *("patch_size", "num_additional_image_tokens", "num_image_tokens"),
    *("vision_feature_select_strategy", "vision_aspect_ratio", "image_token"),
)
# Of some families: left out elsewhere, so that what was hashed before keeps its hash.
_TILES = ("max_image_size", "do_image_splitting", "min_patches", "max_patches", "do_pan_and_scan")
_TILE_COUNTS = ("image_seq_len", "image_seq_length")
_CALL_BY_CALL = ("padding", "truncation")
_PICTURE_HW = (60, 92)  # not square, and of no round number of patches


def load_processor(folder: Path, config: Any, family: Family) -> Any:
    """The Hugging Face processor of a model, ready to pad, from its checkpoint's folder or another.

    Files that are missing, or fields that do not fit the config, are a ValueError.
    """
    processor = _read(folder, config, family)
    tokenizer = processor.tokenizer
    family.prepare(processor)
    if not processor.chat_template:
        processor.chat_template = tokenizer.chat_template or family.template
    if not processor.chat_template:
        raise ValueError(
            f"{folder}: expected a chat template (chat_template.jinja), found none; copy it from "
            f"the model that this one was trained from, or pass its processor: {_way_out(family)}"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{folder}: expected a fast tokenizer (tokenizer.json), found a slow one; pass a "
            f"processor that has one: {_way_out(family)}"
        )
    _set_pad_token(tokenizer, folder)
    _check_image_token(processor, config, family, folder)
    for field in family.fields(config):
        _settle(processor, field, folder)
    _prove(processor, config, family, folder)
    return processor


def processor_sha256(processor: Any) -> str:
    """Of what in a loaded processor can move a score, however its files are laid out.

    Settings for videos are left out, and padding, which changes from call to call.
    """
    images, words = (
        processor.image_processor,
        json.loads(processor.tokenizer.backend_tokenizer.to_str()),
    )
    of_images = images.to_dict()
    content = {
        "class": [type(processor).__name__, type(images).__name__],
        "images": {name: of_images[name] for name in _PIXEL_SETTINGS if name in of_images}
        | {name: of_images[name] for name in _TILES if name in of_images},
        "counts": {name: getattr(processor, name, None) for name in _COUNTS}
        | {name: getattr(processor, name) for name in _TILE_COUNTS if hasattr(processor, name)},
        "template": processor.chat_template,
        "words": {name: value for name, value in words.items() if name not in _CALL_BY_CALL},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(folder: Path, config: Any, family: Family) -> Any:
    """By the family's class: files name classes that came and went with transformers' versions."""
    import transformers

    if not any((folder / name).is_file() for name in _FILES):
        source = _json(folder / "config.json").get("_name_or_path")
        raise ValueError(
            f"{folder}: expected the processor's files (processor_config.json or "
            "preprocessor_config.json), found none, as a Trainer leaves them out; copy them from "
            f"the model that this one was trained from, or pass {_way_out(family, source)}"
        )
    for name in _FILES:
        named = _json(folder / name).get("processor_class")
        if named and named != family.processor and hasattr(transformers, named):
            raise ValueError(
                f"{folder / name}: expected processor_class {family.processor} for a "
                f"{family.model_type}, found {shown(named)}"
            )
    try:
        # With the config, an image processor whose class is gone (Qwen2_5_VLImageProcessor) is
        # read by the class that the model type has now.
        processor = getattr(transformers, family.processor).from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a damaged file makes a library raise
        raise ValueError(
            f"{folder}: expected a processor, found {cause(error)}; mend its files, or pass "
            f"{_way_out(family)}"
        ) from error
    return processor


def _way_out(family: Family, source: str | None = None) -> str:
    return f"--processor ID|DIR (for instance {source or family.upstream})"


def _set_pad_token(tokenizer: Any, folder: Path) -> None:
    """Padding is masked, so any token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: expected pad_token or eos_token, found neither"
        )


def _check_image_token(processor: Any, config: Any, family: Family, folder: Path) -> None:
    """The token that the processor puts must be the one that the model replaces."""
    tokenizer, token, right = processor.tokenizer, family.placed(processor), config.image_token_id
    found = tokenizer.convert_tokens_to_ids(token)
    if found == right and tokenizer.convert_ids_to_tokens(right) == token:
        return
    known = len(tokenizer) > right >= 0
    there = tokenizer.convert_ids_to_tokens(right) if known else None
    raise ValueError(
        f"{folder}: expected the image token {token!r} to have the id {right} (image_token_id or "
        f"image_token_index in config.json), found it {_at(found, tokenizer)} and "
        f"{there!r} at {right}; the tokenizer's files are of another checkpoint"
    )


def _at(found: int | None, tokenizer: Any) -> str:
    unknown = found is None or found == tokenizer.unk_token_id
    return "missing" if unknown else f"at {found}"


def _settle(processor: Any, field: Field, folder: Path) -> None:
    """Fill a field that the files leave open; refuse one that they state otherwise."""
    *inside, name = field.name.split(".")
    target = processor.image_processor if inside else processor
    stated, file = _stated(folder, name, image=bool(inside))
    if stated is None:
        setattr(target, name, _as_the_library_has_it(getattr(target, name, None), field.right))
    elif field.only and not same(stated, field.right):
        raise ValueError(
            f"{file}: expected {name} to be {shown(field.right)}, as {field.source} in config.json "
            f"makes it, found {shown(stated)}"
        )


def _stated(folder: Path, name: str, *, image: bool) -> tuple[Any, Path]:
    """What the files say, and which one; null says nothing."""
    nested, flat = (folder / file for file in _FILES)
    top = _json(nested)
    if not image:
        return top.get(name), nested
    inner = top.get("image_processor")
    if isinstance(inner, dict):
        return inner.get(name), nested
    return _json(flat).get(name), flat


def _as_the_library_has_it(found: Any, right: Any) -> Any:
    return type(found)(**right) if isinstance(right, dict) and found is not None else right


def _json(file: Path) -> dict[str, Any]:
    return json_object(file.read_bytes(), file) if file.is_file() else {}


def _prove(processor: Any, config: Any, family: Family, folder: Path) -> None:
    """One small picture: tokens as many as the model makes, pixels as the tower takes them."""
    picture = Image.new("RGB", _PICTURE_HW[::-1])
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "x"}]
    inputs = _taken(processor, [[{"role": "user", "content": parts}]], family, folder)
    placed = int((inputs["input_ids"] == config.image_token_id).sum())
    request = LayoutRequest([_PICTURE_HW], config, processor, inputs.get("image_grid_thw"))
    [layout] = family.layouts(request)
    pixels, right = tuple(inputs["pixel_values"].shape), family.pixels(config)
    if right and pixels[-len(right) :] != right:
        raise ValueError(
            f"{folder}: expected the image processor to make pixels of {_by(right)}, as "
            f"vision_config in config.json has them, found {_by(pixels[-len(right) :])}; mend "
            f"{', '.join(_sizes(family))} in {_image_file(folder).name}"
        )
    if placed != layout.n_tokens:
        raise ValueError(
            f"{folder}: the processor puts {placed} image tokens where the model makes "
            f"{layout.n_tokens} (of a picture of {_by(_PICTURE_HW)}); {_image_file(folder).name} "
            "and config.json disagree"
        )


def _taken(processor: Any, turns: list, family: Family, folder: Path) -> Any:
    try:
        [rendered] = processor.apply_chat_template(turns)
        if processor.image_token in rendered:
            return processor.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_tensors="pt"
            )
    except Exception as error:
        raise ValueError(
            f"{folder}: expected a processor that takes a picture, found {cause(error)}"
        ) from error
    raise ValueError(
        f"{folder}: expected a chat template that puts {processor.image_token!r} for a part of "
        'the form {"type": "image"}, found one that puts none; pass ' + _way_out(family)
    )


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _sizes(family: Family) -> list[str]:
    return ["patch_size"] if family.grids is not None else ["size", "crop_size"]


def _image_file(folder: Path) -> Path:
    nested, flat = (folder / file for file in _FILES)
    return nested if "image_processor" in _json(nested) or not flat.is_file() else flat
