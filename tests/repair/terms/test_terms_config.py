"""Configs of loss terms: what a step must bring, YAML and its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfix.config import dump_config, load_config
from kvfix.repair.terms.losses import Losses
from kvfix.repair.terms.mass import MassTerm
from kvfix.repair.terms.text_value import TextValueTerm


def test_needs_are_those_of_the_active_terms_only() -> None:
    assert not any(vars(Losses().needs()).values())
    losses = load_config(
        Losses, None, ["mask.weight=1", "mask.layers=[1]", "kl.weight=1", "gram.layers=[7]"]
    )
    needs = losses.needs()
    assert (needs.sites, needs.layers, needs.base_sites) == ({"value"}, {1}, set())
    assert needs.rows and needs.base_rows and not needs.text and not needs.attention
    assert list(losses.active()) == ["mask", "kl"]
    both = MassTerm(layers=(2,)).needs() | TextValueTerm(layers=(1,)).needs()
    assert both.text and both.agnostic and (both.attention, both.layers) == ({2}, {1})


def test_losses_map_to_yaml(tmp_path: Path) -> None:
    file = tmp_path / "losses.yaml"
    file.write_text("mask: {weight: 0.5, layers: [1, 2]}\nkl: {weight: 1, at: both}\n")
    losses = load_config(Losses, file, ["gram.weight=2", "gram.layers=[3]", "mask.dice=0"])
    assert (losses.mask.weight, losses.mask.layers) == (0.5, (1, 2))
    assert (losses.kl.weight, losses.kl.at, losses.gram.layers) == (1.0, "both", (3,))
    assert losses.mask.dice == 0.0
    file.write_text(dump_config(losses))
    assert load_config(Losses, file) == losses
    for override, says in (
        ("mask.wait=1", r"'mask.wait' is unknown; known keys: weight, layers"),
        ("kl.layers=[1]", "'kl.layers' is unknown"),
        ("text_value.weight=1", "config text_value: expected layers for a term of weight 1.0"),
        ("mask.layers=[1, x]", "config mask: expected layers as different numbers"),
        ("mask.layers=[1, 1]", "different numbers"),
        ("mask.weight=-1", "'mask.weight': expected a number of 0 or more, found -1.0"),
        ("kl.at=here", "expected at to be text, answer, both"),
        ("kl.chunk=0", "'kl.chunk': expected a whole number of 1 or more, found 0"),
        ("dependence.floor=0", "'dependence.floor': expected a number above 0 and of 1 at most"),
        ("mass.ceiling=1", "'mass.ceiling': expected a number of 0 or more and below 1"),
        ("distil.temperature=0", "'distil.temperature': expected a number above 0, found 0.0"),
        ("gram.chunk=0", "'gram.chunk': expected a whole number of 1 or more"),
        ("mask=3", "'mask': expected MaskTerm, found int"),
    ):
        with pytest.raises(ValueError, match=says):
            load_config(Losses, None, [override])
