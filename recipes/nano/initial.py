"""Where a nano's weights start: not all at random, so that few pictures and texts are enough.

Sides, patches and ranges are those of `models.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

# Standard deviation of word embeddings. A word that is not said for a while is pushed the way of
# all such words; from smaller ones, left, centre and right became parallel, and no lesson told
# them apart again.
WORDS_RANGE = 0.125
# By how many nats a token attends more to its like than to another, both beside it.
LIKENESS = 4.0
SLOW = 3.0  # weight of the slow half of a head's rotations against the fast half
PASSED_ON = 0.5  # share of an attended token that a layer adds to the attending one
APART = 0.5  # noise of heads that share a key, as a share of their weights
ORDER = 10.0  # nats by which a head of order attends to the token before
PAIRS = 4  # of a head's rotations, the fastest, that order is read from
LESS_LIKE = 0.3  # what is left of likeness in such heads
ROTARY_BASE = 1e4


def lay_out_places(model: Any, side: int) -> None:
    """Start the tower's learned place table from waves over rows and columns.

    From random numbers a small tower would first have to find out which cells are neighbours.
    """
    tables = [
        m
        for name, m in model.named_modules()
        if name.endswith("vision_tower.embeddings.position_embedding")
        or name.endswith("vision_model.embeddings.position_embedding")
    ]
    for table in tables:
        width = table.weight.shape[1]
        wave = torch.arange(side)[:, None] * 0.5 ** torch.arange(width // 4).mul(16 / width)
        along = torch.cat([wave.sin(), wave.cos()], -1)  # (side, width / 2)
        rows, columns = along[:, None].expand(side, side, -1), along[None].expand(side, side, -1)
        places = torch.cat([rows, columns], -1).flatten(0, 1)
        with torch.no_grad():
            table.weight[-len(places) :] = 0.5 * places  # CLIP's first is its class token


def lay_out_pixels(model: Any, patch: int) -> None:
    """Start a tower with large patches so that it sees redness at every pixel, the rest coarsely.

    Marks are drawn in pure red with lines of one pixel, which random mixtures of a patch's pixels
    would bury under the picture.
    """
    for name, conv in model.named_modules():
        if not name.endswith("vision_tower.embeddings.patch_embedding"):
            continue
        fine = torch.eye(patch**2).view(patch**2, 1, patch, patch)
        red = fine * torch.tensor([1.0, -0.5, -0.5]).view(1, 3, 1, 1)
        points = patch // 2
        coarse = torch.eye(points**2).view(points**2, 1, points, points)
        coarse = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
        colours = torch.cat([coarse * torch.eye(3)[k].view(1, 3, 1, 1) for k in range(3)])
        laid = torch.cat([red, colours]) * 0.3
        with torch.no_grad():
            conv.weight[: len(laid)] = laid


def widen_words(model: Any, usual: float) -> None:
    """Start word embeddings at `WORDS_RANGE` in place of the usual range."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(WORDS_RANGE / usual)


def lay_out_attention(model: Any) -> None:
    """Start the language model's attention so that like finds like, and passes itself on.

    Queries equal keys, so that a word attends to wherever it stands, cells among them; outputs
    undo values. A small model hardly finds this by itself (after the mimetic initialisation of
    vision transformers, arXiv 2305.09828). Rotary positions turn a head's fast half far
    over tens of tokens, so likeness counts more in its slow half. Heads that share a key start
    apart: equal ones have equal gradients and stay one head for ever.
    """
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        queries, keys = attention.q_proj.weight, attention.k_proj.weight
        values, outputs = attention.v_proj.weight, attention.o_proj.weight
        side, width = attention.head_dim, keys.shape[1]
        heads, groups = len(keys) // side, len(queries) // len(keys)
        slow = torch.arange(side) % (side // 2) >= side // 4
        weights = torch.where(slow, SLOW, 1.0)
        weights *= math.sqrt(LIKENESS / (weights.square().mean() * math.sqrt(side) * width))
        like = torch.randn(heads, side, width) * weights[:, None]
        passed = torch.linalg.qr(torch.randn(width, len(values)))[0].T * math.sqrt(PASSED_ON)
        back = passed.view(heads, side, width).repeat_interleave(groups, 0) / groups
        with torch.no_grad():
            keys.copy_(like.flatten(0, 1))
            queries.copy_(_apart(like.repeat_interleave(groups, 0).flatten(0, 1)))
            values.copy_(passed)
            outputs.copy_(_apart(back.flatten(0, 1).T))


def _apart(weights: torch.Tensor) -> torch.Tensor:
    """The weights and some noise."""
    return weights + torch.randn_like(weights) * weights.square().mean().sqrt() * APART


def lay_out_order(model: Any) -> None:
    """In the first half of the layers, let the last key's heads look at the tokens before.

    The letter of an option stands before its words, and likeness alone never finds it. A bias
    of the key that equals a bias of the query, turned as far as rotary positions turn it over one
    token or two, is largest at that distance, whatever the words.
    """
    layers = model.model.language_model.layers
    for layer in layers[: len(layers) // 2]:
        attention = layer.self_attn
        side = attention.head_dim
        groups = len(attention.q_proj.weight) // len(attention.k_proj.weight)
        turns = ROTARY_BASE ** (-torch.arange(0, side, 2) / side)  # of a pair, a token
        size = torch.zeros(side // 2)
        size[:PAIRS] = math.sqrt(ORDER * math.sqrt(side) / PAIRS)
        with torch.no_grad():
            attention.k_proj.weight[-side:] *= LESS_LIKE
            attention.k_proj.bias[-side:] = torch.cat([size, torch.zeros(side // 2)])
            attention.q_proj.weight[-groups * side :] *= LESS_LIKE
            back = 1 + torch.arange(groups)[:, None]  # tokens
            at = torch.cat([size * torch.cos(back * turns), -size * torch.sin(back * turns)], -1)
            attention.q_proj.bias[-groups * side :] = at.flatten()


def take_language(model: Any, tokenizer: Any, folder: str) -> None:
    """Start the language model from that of a finished nano, of this family or another.

    Its layers are those of all nanos; words are found by their text, so what only this family's
    chat needs stays as it is.

    Raises:
        OSError: no checkpoint in the folder.
    """
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    kept = dict(theirs.named_parameters())
    mine, other = (t.get_vocab() for t in (tokenizer, AutoTokenizer.from_pretrained(folder)))
    both = [word for word in mine if word in other]
    at, of = ([vocabulary[word] for word in both] for vocabulary in (mine, other))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("language_model.embed_tokens.weight"):
                weight[at] = kept[name][of]
            elif "language_model" in name and name in kept:
                weight.copy_(kept[name])
