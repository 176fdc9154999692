"""Put an adapter on a model, as PEFT does it, and refuse what does not fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from kvfix.adapters.beside import load_beside
from kvfix.adapters.folder import CONFIG, WEIGHTS, Adapter, refuse_gate
from kvfix.adapters.keys import check_biases, check_keys
from kvfix.adapters.naming import Naming, naming_of
from kvfix.adapters.settings import lora_config
from kvfix.adapters.targets import resolve
from kvfix.adapters.tensors import check_tensors, module_of, nothing_trained
from kvfix.adapters.vocabulary import fit_vocabulary
from kvfix.wording import cause


class Loaded(NamedTuple):
    """A model with its adapter."""

    model: Any  # a PEFT model
    adapter: Adapter  # with warnings of what was found while it was loaded


def load(model: Any, adapter: Adapter, *, processor: Any, known: Iterable[Naming]) -> Loaded:
    """Wrap a model, in place, with an adapter that `find` found, as PEFT does where PEFT can.

    The processor gets the adapter's tokenizer where tokens were added; `known` are older names of
    the family's modules (`Family.old_names`). An adapter that does not fit is a ValueError.
    """
    from peft import PeftModel

    class Reporting(PeftModel):
        """Keeps what PEFT reports of a load; `from_pretrained` warns of it and goes on."""

        report: Any = None

        def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
            self.report = super().load_adapter(*args, **kwargs)
            return self.report

    known = tuple(known)
    modules = [name for name, _ in model.named_modules() if name]
    naming = naming_of(map(module_of, adapter.tensors.shapes), existing=modules, known=known)
    where = adapter.folder / CONFIG
    settings = resolve(adapter.settings, modules, naming, where=where)
    config = lora_config(settings, where=where)
    load_beside(model, adapter.beside, known)
    said = fit_vocabulary(model, processor, adapter, naming)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Missing keys are an error below; the others are of PEFT's own making.
        warnings.simplefilter("ignore")
        try:
            wrapped = Reporting.from_pretrained(
                model,
                str(adapter.folder),
                config=config,
                key_mapping={f"^{re.escape(then)}": now for then, now in naming.prefixes},
            )
        except Exception as error:  # PEFT raises whatever its code runs into
            plain = isinstance(error, ValueError | RuntimeError)
            kind = "" if plain else f"{type(error).__name__} "
            raise ValueError(
                f"{adapter.folder}: expected an adapter for this model, found {kind}{cause(error)}"
            ) from error
    check_keys(adapter.file, wrapped.report.missing_keys, wrapped.report.unexpected_keys)
    check_biases(adapter, wrapped, naming)
    if adapter.tensors.magnitudes_alone and not adapter.beside:
        _check_magnitudes(adapter, wrapped)
    return Loaded(wrapped, replace(adapter, warnings=(*adapter.warnings, *said)))


def restore(model: Any, folder: Path) -> None:
    """Put a folder's weights into the adapter that a model has, as when a training goes on."""
    from peft import set_peft_model_state_dict

    refuse_gate(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: expected {WEIGHTS}, found no such file")
    check_tensors(file, {}, helped=True)  # a young adapter may still be zero
    try:
        report: Any = set_peft_model_state_dict(model, load_file(file))
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected this model's adapter, found {cause(error)}; resume with the same "
            "config"
        ) from error
    missing = [key for key in report.missing_keys if ".lora_" in key]
    check_keys(file, missing, report.unexpected_keys)


def _check_magnitudes(adapter: Adapter, wrapped: Any) -> None:
    """Refuse a DoRA of zero updates whose magnitudes are still the weights' own."""
    for module in wrapped.get_base_model().modules():
        for part in getattr(module, "lora_magnitude_vector", {}).values():
            norm = module.get_base_layer().weight.float().norm(dim=1)
            if not torch.allclose(part.weight.float().flatten(), norm, rtol=1e-3):
                return
    raise nothing_trained(adapter.file, min(x for x in adapter.tensors.shapes if "lora_B" in x))
