"""A nano with input-agnostic image keys, made by training: what suppression is tested on.

    python recipes/experiment/plant_keys.py llava_onevision checkpoints/planted
    python recipes/experiment/run.py families=[planted] own=checkpoints/planted \
        "arms=[lora,suppression]" rates=[3e-3] seeds=[0]
    python recipes/experiment/tables.py families=[planted] own=checkpoints/planted \
        "arms=[lora,suppression]" rates=[3e-3] seeds=[0]

No nano has such keys of its own. In the later half of the layers the language model learns, beside
its talk about pictures, to hold the keys at the first row of cells constant and all others not.

Shapes: I images, S layers, H KV heads, N cells, D channels of a head.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from run import scene_mix
from torch import Tensor

from kvfix.data.training.examples import Example, scene_examples
from kvfix.mlm.capture import Capture
from kvfix.mlm.load import Mlm, load_mlm
from kvfix.repair.base_pass import logits_at
from kvfix.repair.batch import Batch, Collator
from kvfix.repair.terms.dependence import input_dependence
from kvfix.repair.terms.mean import answer_nll
from kvfix.shipped import nano_dir, shipped_families

BATCH = 16
LOW, HIGH = 3e-4, 0.1  # r of planted keys at most, of all others at least
SHOWN = 30  # steps between lines


def main() -> None:
    """Plant, and save the model with its processor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", choices=shipped_families())
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    asked = parser.parse_args()
    torch.manual_seed(0)
    mlm = load_mlm(str(nano_dir(asked.family)), dtype=torch.float32)
    plant(mlm, list(range(mlm.n_layers // 2, mlm.n_layers)), steps=asked.steps)
    mlm.model.save_pretrained(asked.out)
    mlm.processor.save_pretrained(asked.out)
    print(f"wrote {asked.out}")


def plant(mlm: Mlm, layers: list[int], *, steps: int) -> None:
    """Train all decoder layers; vision, projector and embeddings stay."""
    weights = [w for layer in range(mlm.n_layers) for w in mlm.layer(layer).parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    for number, batch in enumerate(batches(mlm, steps)):
        nll, r_SHN = forward(mlm, batch, layers)
        planted_N = torch.arange(r_SHN.shape[-1]) < batch.encoded.images[0][0].layout.grid_hw[1]
        log_r_SHN = r_SHN.clamp(min=1e-8).log()
        too_high = (log_r_SHN[..., planted_N] - math.log(LOW)).clamp(min=0).mean()
        too_low = (math.log(HIGH) - log_r_SHN[..., ~planted_N]).clamp(min=0).mean()
        optimizer.zero_grad()
        (nll + 0.3 * too_high + 3 * too_low).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        falling.step()
        if (number + 1) % SHOWN == 0 or number == 0:
            medians = [float(r_SHN[..., at].detach().median()) for at in (planted_N, ~planted_N)]
            print(
                f"step {number + 1}: answers {nll.item():.3f} nats, median r of planted keys "
                f"{medians[0]:.5f}, of others {medians[1]:.3f}",
                flush=True,
            )


def batches(mlm: Mlm, steps: int) -> Iterator[Batch]:
    """Talk about one train picture each."""
    mix = scene_mix()
    kinds = mix.round
    examples = scene_examples("train", len(kinds) * BATCH * steps, mix)
    collator = Collator(mlm.processor, mlm.config, mlm.family)
    for step in range(steps):
        first = len(kinds) * BATCH * step + kinds.index("talk")
        of: list[Example] = [examples[first + len(kinds) * i] for i in range(BATCH)]
        yield collator(of).moved(mlm.device, mlm.dtype)


def forward(mlm: Mlm, batch: Batch, layers: list[int]) -> tuple[Tensor, Tensor]:
    """Loss on answers, nats a token, and r_SHN of all keys over the batch's images."""
    with Capture(mlm, batch.encoded, sites=("key",), layers=layers, grad=True) as cap:
        hidden_BLC = mlm.base.model(**batch.encoded.inputs, use_cache=False)[0]
        samples = cap.collect()
    mean = answer_nll(logits_at(mlm, hidden_BLC, batch.rows_R), batch.target_R, batch.answer_R)
    k_ISNC = torch.stack([sample.images[0]["key"].flatten(1, 2) for sample in samples])
    # What every key shares is no property of a cell: the statistic leaves it out, too.
    biases = [mlm.key_bias(layer) for layer in layers]
    none_C = k_ISNC.new_zeros(k_ISNC.shape[-1])
    bias_SC = torch.stack([none_C if bias_C is None else bias_C for bias_C in biases])
    k_ISHND = (k_ISNC - bias_SC[:, None]).unflatten(-1, (mlm.n_kv_heads, -1)).transpose(2, 3)
    return mean.total / mean.weight, input_dependence(k_ISHND)


if __name__ == "__main__":
    main()
