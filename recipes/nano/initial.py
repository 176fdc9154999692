"""Where a nano's weights start: not all at random, so that few pictures and texts are enough.

Sides, patches and ranges are those of `models.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

# Standard deviation of word embeddings. A word that is not said for a while is pushed the way of
# all such words; from smaller ones, left, centre and right became parallel, and no lesson told
# them apart again.
WORDS_RANGE = 0.125
LIKENESS = 5.0  # nats by which a token attends more to its like than to another, both beside it
SLOW = 3.0  # weight of the slow half of a head's rotations against the fast half
ORDER = 10.0  # nats by which a head of order attends to its token
PAIRS = 4  # of a head's rotations, the fastest, that order is read from
PASSED_ON, PASSED_BACK = 0.2, 0.18  # of an attended token; about as long as a word is
QUIET = 0.3  # of words in parts that are kept for others, and of what the MLPs write
NOISE = 0.3  # as a share of the weights
ROTARY_BASE = 1e4


class Order(NamedTuple):
    """What a layer's heads of order read, and where one and two tokens back are written."""

    of: int
    into: tuple[int, int]


ORDERED = (Order(0, (1, 2)), Order(2, (2, 3)))  # numbers of `Parts`, layer by layer


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


def lay_out_language(model: Any) -> None:
    """Start the language model so that it can look things up from the first step.

    A token's directions are four parts, each as wide as a head. Words start in the first and the
    last. In the first two layers heads look one and two tokens back and write what stands there
    into the second and the third part, so that every token knows what precedes it. Other heads look
    for tokens whose first part is like their own, or like that of the token before them, and pass
    on what these are, or what precedes those. A small model hardly finds any of this by itself, and
    chooses among options only if it does (README).
    """
    table_VD, layers = model.get_input_embeddings().weight, model.model.language_model.layers
    width = table_VD.shape[1]
    parts = Parts(*torch.linalg.qr(torch.randn(width, width))[0].T.split(width // 4))
    with torch.no_grad():
        quiet_VD = sum(table_VD @ part.T @ part for part in (parts.before, parts.before_that))
        loud_VD = table_VD - quiet_VD
        table_VD.copy_(loud_VD * math.sqrt(2 - QUIET**2) + quiet_VD * QUIET)
        for number, layer in enumerate(layers):
            _lay_out_layer(layer.self_attn, number, parts)
            layer.mlp.down_proj.weight.mul_(QUIET)


class Parts(NamedTuple):
    """Orthonormal rows, (width / 4, width) each."""

    words: torch.Tensor
    before: torch.Tensor
    before_that: torch.Tensor
    free: torch.Tensor


def _lay_out_layer(attention: Any, number: int, parts: Parts) -> None:
    """Four heads, of which each two share a key."""
    side = attention.head_dim
    slow = torch.arange(side) % (side // 2) >= side // 4  # of a head's rotations
    like = torch.where(slow, SLOW, 1.0)
    like *= math.sqrt(LIKENESS * math.sqrt(side) / (2 * like.square().sum()))
    key = parts.words * like[:, None]
    queries, keys = [key, parts.before * like[:, None]], [key]
    values = [parts.words if number % 2 else parts.before_that]
    outputs = [parts.words.T * PASSED_ON] * 2
    if number < len(ORDERED):
        queries, keys = [*queries, 0 * key, 0 * key], [*keys, 0 * key]
        values.append(parts[ORDERED[number].of])
        outputs += [parts[i].T * PASSED_BACK for i in ORDERED[number].into]
        _look_back(attention)
    else:
        queries, keys = [*queries, key, parts.free * like[:, None]], [*keys, key]
        values.append(parts.before if number % 2 else parts.free)
        outputs += [parts.free.T * PASSED_ON] * 2
    attention.q_proj.weight.copy_(_noisy(torch.cat(queries)))
    attention.k_proj.weight.copy_(_noisy(torch.cat(keys)))
    attention.v_proj.weight.copy_(_noisy(torch.cat(values)))
    attention.o_proj.weight.copy_(_noisy(torch.cat(outputs, 1)))


def _look_back(attention: Any) -> None:
    """Let the last key's two heads look one and two tokens back, whatever the words.

    A bias of the key that equals a bias of the query, turned as far as rotary positions turn it
    over so many tokens, is largest at that distance.
    """
    side = attention.head_dim
    turns = ROTARY_BASE ** (-torch.arange(0, side, 2) / side)  # of a pair, a token
    size = torch.zeros(side // 2)
    size[:PAIRS] = math.sqrt(ORDER * math.sqrt(side) / PAIRS)
    attention.k_proj.bias[-side:] = torch.cat([size, torch.zeros(side // 2)])
    back = torch.tensor([[1], [2]])  # tokens
    at = torch.cat([size * torch.cos(back * turns), -size * torch.sin(back * turns)], -1)
    attention.q_proj.bias[-2 * side :] = at.flatten()


def _noisy(weights: torch.Tensor) -> torch.Tensor:
    """Heads that start equal have equal gradients, and would stay one head for ever."""
    return weights + torch.randn_like(weights) * weights.square().mean().sqrt() * NOISE


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
