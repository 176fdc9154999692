"""Checkpoint folders: find, check, hash and load them; safetensors only, never remote code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kvfix.checkpoint.quantised import abilities, quantised
from kvfix.checkpoint.strangers import not_a_checkpoint, original_llava
from kvfix.data.json_object import json_object
from kvfix.quiet import no_bars
from kvfix.wording import cause

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Weights:
    """A checkpoint folder."""

    folder: Path
    files: tuple[Path, ...]  # safetensors by name; empty for random weights
    config: dict[str, Any]  # config.json as read
    revision: str | None  # commit; None for a folder of one's own
    seed: int | None  # of random weights; None for the checkpoint's own

    def sha256(self) -> str:
        """Hash of the files one after the other; of config and seed for random weights."""
        return self._hash.result()

    def begin_hashing(self) -> None:
        """Hash beside what comes next: that takes half a minute for 16 GB."""
        _ = self._hash

    @property
    def hashed(self) -> bool:
        """Whether `sha256` answers at once."""
        return self._hash.done()

    @cached_property
    def _hash(self) -> Future[str]:
        """Made once, by a thread that no process waits for at its end."""
        made: Future[str] = Future()

        def make() -> None:
            try:
                made.set_result(self._hashed())
            except BaseException as error:  # for whoever asks
                made.set_exception(error)

        Thread(target=make, daemon=True).start()
        return made

    def _hashed(self) -> str:
        if self.seed is not None:
            text = f"random weights {self.seed}\n{json.dumps(self.config, sort_keys=True)}"
            return hashlib.sha256(text.encode()).hexdigest()
        return sha256_of(self.files)


def sha256_of(files: Iterable[Path]) -> str:
    """Hash files one after the other, without holding one in memory."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def find(id_or_dir: str, *, weights: bool, seed: int | None = None) -> Weights:
    """Locate a checkpoint and check that it is one, before anything heavy is loaded.

    A hub id is downloaded unless cached; `seed` is that of random weights that stand in for its
    own. No config.json or weights are a FileNotFoundError; weights that are no safetensors, and the
    original LLaVA code's, a ValueError.
    """
    folder, revision = locate(id_or_dir, weights=weights)
    if not (folder / "config.json").is_file() and (why := not_a_checkpoint(folder)):
        raise FileNotFoundError(f"{folder}: {why}")
    config = read_json(folder / "config.json")
    if why := original_llava(config, id_or_dir):
        raise ValueError(f"{folder / 'config.json'}: {why}")
    files = _weight_files(folder) if weights else ()
    return Weights(folder=folder, files=files, config=config, revision=revision, seed=seed)


def locate(id_or_dir: str, *, weights: bool) -> tuple[Path, str | None]:
    """Folder of a model or processor, and its commit if it comes from the hub; see `find`."""
    folder = Path(id_or_dir).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.is_file() and (why := not_a_checkpoint(folder)):
        raise FileNotFoundError(f"{id_or_dir}: {why}")
    if not _HUB_ID.fullmatch(id_or_dir):
        raise FileNotFoundError(
            f"{id_or_dir}: expected a folder or a hub id (owner/name), found neither"
        )
    patterns = [p for p in _HUB_FILES if weights or p != "*.safetensors"]
    ignore = ["original/*", "consolidated*"]
    cached = fetch(id_or_dir, patterns=patterns, ignore=ignore, what="model")
    return cached, cached.name


def fetch(name: str, *, patterns: list[str], ignore: list[str], what: str) -> Path:
    """Files of a hub repository in a folder named by the commit, downloaded unless cached.

    `patterns` are wanted, but for those that `ignore` matches; `what` is for the message.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignore))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: expected a folder or a hub {what}, found no such folder, and the hub did "
            f"not give it: {cause(error)}"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A checkpoint's JSON file, or a FileNotFoundError or ValueError."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.parent}: expected a checkpoint folder with {file.name}, found no such file"
        )
    return json_object(file.read_bytes(), file)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        files = tuple(folder / name for name in names)
        for file in files:
            tensor_names(file)  # a file cut short fails here, by name, before anything is loaded
        return files
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder}: expected weights as safetensors, found {pickles[0]}; pickles are not "
            "loaded, convert it with transformers' save_pretrained"
        )
    raise FileNotFoundError(f"{folder}: expected weights, found no {missing[0]}")


def tensor_names(file: Path) -> set[str]:
    """Names of a safetensors file's tensors; one that is damaged is a ValueError."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{file}: expected readable safetensors, found {cause(error)}; fetch it again"
        ) from error


def load_config(folder: Path) -> Any:
    """The Hugging Face config."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def initialise(config: Any, *, seed: int, dtype: str | torch.dtype, attn: str | None) -> Any:
    """A model with fresh random weights; the global random state is left as it was."""
    from transformers import AutoModelForImageTextToText

    if dtype == "auto":
        dtype = config.dtype or torch.float32  # read first: building overwrites the config's dtype
    # Drawn on the CPU: asking for the state of every GPU would set each of them up.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # In float32 first: the same seed then gives the same weights, rounded, in every dtype.
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, **_given(attn_implementation=attn)
        )
    return model.to(dtype)


def load_model(
    folder: Path,
    *,
    dtype: str | torch.dtype,
    device: str | None,
    quant: str | None,
    attn: str | None,
    keep: tuple[str, ...],
) -> Any:
    """Load a checked folder as `kvfix.load_mlm` says; modules at the paths `keep` are not
    quantised.
    """
    from transformers import AutoModelForImageTextToText

    already = quantised(load_config(folder))
    if already is not None and quant is not None:
        raise ValueError(
            f"{folder}: expected an unquantised checkpoint for quant={quant}, found one that is "
            f"quantised by {already.method}; leave quant out"
        )
    try:
        with no_bars():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                device_map="auto" if device == "auto" else {"": pick_device(device)},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **_given(
                    attn_implementation=attn,
                    quantization_config=_quantization(quant, dtype, folder, keep),
                ),
            )
    except Exception as error:
        if already is None:
            raise
        raise ValueError(f"{folder}: {abilities(already)} ({cause(error)})") from error
    model, info = loaded
    # transformers fills holes with random numbers and goes on; a diagnosis must not.
    holes = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if holes:
        raise ValueError(
            f"{folder}: expected weights for the whole model, found {len(holes)} missing or "
            f"misshapen: {holes[0]}"
        )
    if quant == "nf4" or (already is not None and already.method == "nf4"):
        forbid_repacking(model)
    return model


def forbid_repacking(model: Any) -> None:
    """Keep nf4 weights as they were loaded.

    On CPUs with AVX512-BF16, bitsandbytes (0.50.2) repacks a weight in its first pass in eval mode
    without gradients. That rounds its scales and computes in bfloat16 whatever was asked for, DoRA
    reads the new order as the old one, and every later pass, in training too, uses a kernel without
    a backward: gradients were off by 50 to 80 % here, with one warning. Decoding is slower without.
    Delete when bitsandbytes registers a backward for `gemv_4bit` and keeps the weights' bits.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def pick_device(device: str | None) -> str:
    """The asked device, else the GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _quantization(
    quant: str | None, dtype: str | torch.dtype, folder: Path, keep: tuple[str, ...]
) -> Any | None:
    if quant is None:
        return None
    from transformers import BitsAndBytesConfig

    skip = [*keep, "lm_head"]
    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    compute = (load_config(folder).dtype or torch.bfloat16) if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,  # same numbers; ZeRO-3 partitions floating tensors only
        llm_int8_skip_modules=skip,
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
