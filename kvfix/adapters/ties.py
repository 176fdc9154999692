"""Input and output embeddings that share their weights: taken apart before an adapter is merged.

PEFT adds an update to the weights in place, so that one meant for the head would change what tokens
look like, too, and a config that still says "tied" makes the saved copies one again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kvfix.data.groups import grouped


def untie(model: Any) -> bool:
    """Give the output embeddings weights of their own, and say whether they shared the input's."""
    named = model.named_parameters(remove_duplicate=False)
    shared = [group for group in grouped(named, lambda n: id(n[1])).values() if len(group) > 1]
    for _, *others in shared:
        copies: dict[int, nn.Parameter] = {}
        for name, _ in others:
            path, _, last = name.rpartition(".")
            module = model.get_submodule(path)
            if id(module) not in copies:  # a module may be reached by two paths
                weight = getattr(module, last)
                copies[id(module)] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
                setattr(module, last, copies[id(module)])
    return bool(shared)


def settle(model: Any) -> None:
    """Tie again what is still equal after the merge, else say in the config that it is not tied."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    equal = first.weight.shape == last.weight.shape and torch.equal(first.weight, last.weight)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = equal
    if equal:
        model.tie_weights()
