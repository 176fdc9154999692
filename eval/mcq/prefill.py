"""Run a batch of prompts once; score answers and write them from what that left in the cache.

Shapes: B questions, L positions of the padded prompts, T tokens of all options, V vocabulary, N
ends: the prompt's, then the T tokens'.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvfix.eval.mcq.options import OptionTree
from kvfix.mlm.load import Encoded, Mlm
from kvfix.mlm.renamed import cache_argument

# Implementations that take a mask with one row a token; flash attention takes none.
MASKED_ATTENTION = ("sdpa", "eager")


class Prefill:
    """Left-padded prompts of one batch, run once; one at a time a model, whose M-RoPE offsets it
    sets.
    """

    def __init__(self, mlm: Mlm, encoded: Encoded):
        _check_attention(mlm, encoded)
        self.mlm, self.mask_BL = mlm, encoded.inputs["attention_mask"]
        self.ids_BL = encoded.inputs["input_ids"]
        if not bool(self.mask_BL[:, -1].all()):
            raise ValueError("expected prompts padded on the left, found padding on the right")
        # Without a config every layer keeps all positions, so that the cache can be cut back.
        self.cache = DynamicCache()
        with torch.no_grad():
            # The model without its head: logits of all positions would not fit.
            cache = {cache_argument(mlm.base.model): self.cache}
            out = mlm.base.model(**encoded.inputs, **cache, use_cache=True)
            self.dtype = out.last_hidden_state.dtype
            self.end_BC = out.last_hidden_state[:, -1]
        self.next_B = self.mask_BL.sum(-1) + mlm.family.first_position
        if not mlm.family.positions_from_mask:
            self.next_B = self.next_B + mlm.base.model.rope_deltas[:, 0].to(self.next_B.device)

    @property
    def length(self) -> int:
        """Positions of the padded prompts."""
        return self.ids_BL.shape[1]

    @cached_property
    def logits_BV(self) -> Tensor:
        """Of the first token of an answer."""
        return self._head(self.end_BC)

    def option_logprobs(self, tree: OptionTree) -> list[list[Tensor]]:
        """Log-probabilities in nats of each token of each option of each question, float32.

        All options go through the model as one sequence after the prompt, in which a token sees the
        prompt and its own option's earlier tokens; the prompt is not run or copied again.
        """
        logits_BNV = self.logits_BV[:, None]
        if tree.tokens_T:
            logits_BNV = torch.cat((logits_BNV, self._branch(tree)), dim=1)
        logits_BNV = logits_BNV.float()
        if not torch.isfinite(logits_BNV).all():
            raise ValueError(
                f"{self.mlm.id}: expected finite logits, found NaN or infinity ({self.mlm.dtype}); "
                "try another dtype"
            )
        log_z_BN = logits_BNV.logsumexp(-1)
        out = []
        for b, options in enumerate(tree.paths):
            at = [[step.after + 1 for step in path] for path in options]
            token = [[step.token for step in path] for path in options]
            out.append(
                [
                    (logits_BNV[b, n, t] - log_z_BN[b, n]).cpu()
                    for n, t in zip(at, token, strict=True)
                ]
            )
        return out

    def _branch(self, tree: OptionTree) -> Tensor:
        """Logits after each of the tree's tokens, (B, T, V)."""
        device, batch = self.ids_BL.device, len(self.ids_BL)
        depth_T = torch.tensor(tree.depth_T, device=device)
        with torch.no_grad():
            out = self.mlm.lm(
                input_ids=torch.tensor(tree.tokens_T, device=device).expand(batch, -1),
                position_ids=self.next_B[:, None] + depth_T,
                attention_mask=self._tree_mask(tree),
                **{cache_argument(self.mlm.lm): self.cache},
                use_cache=True,
            )
            logits_BTV = self._head(out.last_hidden_state)
        self._cut(self.length)
        return logits_BTV

    def _tree_mask(self, tree: OptionTree) -> Tensor:
        """0 where a token may look, the lowest number elsewhere: (B, 1, T, L + T)."""
        sees_TT = ancestors(tree.parents_T).to(self.mask_BL.device)
        prompt_BTL = self.mask_BL.bool()[:, None].expand(-1, len(sees_TT), -1)
        sees_BTK = torch.cat((prompt_BTL, sees_TT.expand(len(prompt_BTL), -1, -1)), dim=-1)
        mask = torch.zeros(sees_BTK.shape, dtype=self.dtype, device=sees_BTK.device)
        return mask.masked_fill(~sees_BTK, torch.finfo(self.dtype).min)[:, None]

    def write(self, max_new_tokens: int) -> list[str]:
        """What the model writes: the most probable token each time, without the prompt.

        Sampling and penalties of the checkpoint's generation config are switched off; its end
        tokens hold. Special tokens and blanks round the answer are taken off.
        """
        # `generate` wants a token to begin with: the prompt's last one is run again.
        self._cut(self.length - 1)
        ids_BL = self.mlm.base.generate(
            input_ids=self.ids_BL,
            attention_mask=self.mask_BL,
            **{cache_argument(self.mlm.base): self.cache},
            max_new_tokens=max_new_tokens,
            **GREEDY,
        )
        self._cut(self.length)
        texts = self.mlm.processor.tokenizer.batch_decode(
            ids_BL[:, self.length :], skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def _cut(self, length: int) -> None:
        self.cache.crop(length - self.cache.get_seq_length())

    def _head(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.mlm.logits(x)


# Every setting by which a generation config moves the choice of the next token.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def ancestors(parents_T: tuple[int, ...]) -> Tensor:
    """Whether token t sees token s: itself and those before it in its own answers, (T, T) bool."""
    sees_TT = torch.eye(len(parents_T), dtype=torch.bool)
    for t, parent in enumerate(parents_T):
        if parent >= 0:
            sees_TT[t] |= sees_TT[parent]
    return sees_TT


def _check_attention(mlm: Mlm, encoded: Encoded) -> None:
    config = mlm.lm.config
    if config._attn_implementation not in MASKED_ATTENTION:
        raise ValueError(
            f"attn: expected {' or '.join(MASKED_ATTENTION)} to score options, found "
            f"{config._attn_implementation!r}"
        )
    window = getattr(config, "sliding_window", None)  # Llama's config has no such entry
    length = encoded.inputs["input_ids"].shape[1]
    if window is not None and length >= window:
        raise ValueError(
            f"expected prompts shorter than the sliding window of {window} tokens, found {length}; "
            "set max_pixels lower"
        )
