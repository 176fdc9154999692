"""Everything that a repair trains, as one module whose forward pass is the loss of a micro-batch.

What wraps a model for several ranks (DDP, a DeepSpeed engine) must see all of it in ONE call: the
base model's pass, the tuned pass with its hooks, and the heads.

Shapes: T loss terms, "lm" first; R rows of logits; S layers, H KV heads, V image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kvfix.mlm.capture import Capture
from kvfix.mlm.load import Mlm
from kvfix.repair.base_pass import forward_inputs, logits_at, run_base
from kvfix.repair.batch import Batch
from kvfix.repair.key_choice import ChosenKeys
from kvfix.repair.queries import QueryKeys, key_biases
from kvfix.repair.step import Rows, Step, StepKeys
from kvfix.repair.terms.losses import Heads, Losses
from kvfix.repair.terms.mean import Mean, answer_nll

LM = "lm"


class Repair(nn.Module):
    """A model with an adapter, and the heads of its losses.

    `names` are those of the T terms, in the order of every table.
    """

    def __init__(
        self,
        mlm: Mlm,
        losses: Losses,
        *,
        lm: float,
        seed: int,
        keys: ChosenKeys | None = None,
    ):
        """Make the heads that the losses ask for, from `seed`; the model has a fresh adapter.

        `lm` is the weight of the language model's own loss on answers; some terms need `keys` to
        suppress.
        """
        super().__init__()
        needs = losses.needs()
        if lm <= 0 and not losses.active():
            raise ValueError("expected a loss of weight above 0, found none; set lm or losses")
        wrong = [n for n in (*needs.layers, *needs.attention) if n >= mlm.n_layers]
        if wrong:
            raise ValueError(f"expected layers 0..{mlm.n_layers - 1} in losses, found {wrong}")
        if needs.agnostic and keys is None:
            raise ValueError("expected the keys to suppress for these losses, found none")
        self.mlm, self.losses, self.lm = mlm, losses, lm
        self.model = mlm.model
        self.heads = Heads(losses, channels=mlm.n_kv_heads * mlm.head_dim, seed=seed)
        self.keys = keys
        self._key_bias = key_biases(mlm, needs.layers)  # before anything is partitioned
        self._earlier = StepKeys()
        self.names = (LM, *losses.active())

    def beside(self) -> nn.ModuleDict:
        """What is trained beside the adapter, by the names that it is saved under."""
        return nn.ModuleDict({"heads": self.heads})

    def weights(self, number: int) -> list[float]:
        """Weight of each term at an optimizer step, 0-based."""
        return [self.lm, *(term.weight_at(number) for term in self.losses.active().values())]

    def amounts(self, batch: Batch) -> list[float]:
        """Weight of each term's mean in a batch, before any forward pass."""
        keys_SHV = None if self.keys is None else self.keys.keys_SHV
        found = [term.amount(batch, keys_SHV) for term in self.losses.active().values()]
        return [float(batch.answer_R.sum()), *found]

    def forward(
        self, batch: Batch, number: int, amount_T: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Loss of one micro-batch, 0-d, and (T, 2) totals and weights of it, without a graph.

        The optimizer step is 0-based; `amount_T` is the weight of each term's mean over all ranks
        and micro-batches of the step; `scale` is the number of ranks, as gradients are averaged
        over them.
        """
        with ExitStack() as passing:
            step = self._step(batch, number, passing)
            means = self._means_of(batch, step, number)
        total_T = torch.stack([mean.total for mean in means])
        weight_T = torch.stack([mean.weight for mean in means]).detach()
        # Nothing of a kind in the whole step: its totals are 0, whatever divides them.
        factor_T = total_T.new_tensor(self.weights(number)) * scale / amount_T.clamp(min=1e-9)
        factor_T = torch.where(amount_T > 0, factor_T, 0.0)
        return (total_T * factor_T).sum(), torch.stack((total_T.detach(), weight_T), dim=1)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A DeepSpeed checkpoint holds what is trained: the frozen base alone may be missing."""
        found = super().load_state_dict(state_dict, strict=False)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        lost = sorted(trained.intersection(found.missing_keys))
        if lost:
            raise ValueError(
                f"expected a checkpoint of what is trained here, found {len(lost)} parameters "
                f"missing, such as {lost[0]}; resume with the same config"
            )
        return found

    def _step(self, batch: Batch, number: int, passing: ExitStack) -> Step:
        mlm, needs, encoded = self.mlm, self.losses.needs(number), batch.encoded
        self._earlier.begin(number)
        layers = tuple(sorted(needs.layers))
        rows_R = batch.rows_R.to(mlm.device)
        base = None
        if needs.base_sites or needs.base_rows:
            base = run_base(
                mlm,
                encoded,
                rows_N=rows_R if needs.base_rows else None,
                sites=needs.base_sites,
                layers=layers or None,
            )
        capture = reader = None
        grad = torch.is_grad_enabled()
        if needs.sites:
            capture = passing.enter_context(
                Capture(mlm, encoded, sites=needs.sites, layers=layers, grad=grad, text=needs.text)
            )
        if needs.attention:
            reader = passing.enter_context(QueryKeys(mlm, encoded, layers=sorted(needs.attention)))
        hidden_BLC = mlm.base.model(**forward_inputs(mlm, encoded), use_cache=False)[0]
        return Step(
            encoded=encoded,
            features=[] if capture is None else capture.collect(),
            layers=layers,
            extras=batch.extras,
            base=None if base is None else base.features,
            rows=Rows(
                logits_at(mlm, hidden_BLC, rows_R),
                None if base is None else base.logits_NW,
                batch.answer_R.to(rows_R.device),
                batch.text_R.to(rows_R.device),
            ),
            attention={} if reader is None else reader.collect(),
            agnostic_SHV=None if self.keys is None else self.keys.keys_SHV,
            key_bias=self._key_bias,
            earlier=self._earlier,
        )

    def _means_of(self, batch: Batch, step: Step, number: int) -> list[Mean]:
        assert step.rows is not None
        own = answer_nll(step.rows.logits_RW, batch.target_R, batch.answer_R)
        zero = own.total.detach() * 0
        idle = Mean(zero, zero)
        return [
            own,
            *(
                idle if term.idle(number) else term.loss(step, self.heads[name])
                for name, term in self.losses.active().items()
            ),
        ]
