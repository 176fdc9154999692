"""A nano's keys and values of every layer by nnsight, and the plain pass of the same process."""

from typing import Any

import torch
from nnsight import NNsight
from serve import serve
from transformers import AutoModelForImageTextToText

torch.set_num_threads(1)
MODELS: dict[str, Any] = {}


def run(arrays):
    path = str(arrays["model"])
    if path not in MODELS:
        hf = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        MODELS[path] = NNsight(hf.model)
    model = MODELS[path]
    inputs = {n: torch.from_numpy(x) for n, x in arrays.items() if n not in ("model", "cells")}
    cells = torch.from_numpy(arrays["cells"])
    keys, values = [], []
    with torch.inference_mode(), model.trace(**inputs, use_cache=False):
        for layer in model.language_model.layers:
            keys.append(layer.self_attn.k_proj.output.flatten(0, 1)[cells].save())
            values.append(layer.self_attn.v_proj.output.flatten(0, 1)[cells].save())
    return {"key": torch.stack(keys).numpy(), "value": torch.stack(values).numpy()}


serve(run)
