"""Configs and overrides from anywhere: a recipe, or one short line that refuses it; no hang."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kvfix.config import dump_config, load_config
from kvfix.repair.train.recipe import Recipe

LONGEST = 1500  # characters of a refusal: data of 200 at most, and the names of all known keys


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every key of a config, nested ones with dots."""
    found = []
    for f in fields(config):
        value = getattr(config, f.name)
        found.append(f"{prefix}{f.name}")
        if is_dataclass(value):
            found += keys(value, f"{prefix}{f.name}.")
    return found


KEYS = keys(Recipe())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["1e-3", "0x10", "1_000", "1:30", "2026-11-28", ".inf", "-.NaN", "~", "nf4"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)
# Ten to the ninth texts, if an alias is written out wherever it stands.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


def loads_or_refuses(path: Path | None, overrides: list[str]) -> Recipe | None:
    try:
        recipe = load_config(Recipe, path, overrides)
    except ValueError as error:
        length = len(str(error))
        assert 0 < length < LONGEST, str(error)[:300]
        return None
    assert load_config(Recipe, None, as_overrides(recipe)) == recipe
    return recipe


def as_overrides(recipe: Recipe) -> list[str]:
    """The same config, spelt on a command line."""
    resolved = yaml.safe_load(dump_config(recipe))
    return [f"{k}={yaml.safe_dump(v, default_flow_style=True)}" for k, v in resolved.items()]


@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4))
def test_known_keys_with_any_value(given_values: list[tuple[str, Any]]) -> None:
    loads_or_refuses(
        None, [f"{k}={yaml.safe_dump(v, default_flow_style=True)}" for k, v in given_values]
    )


@given(st.lists(st.text(max_size=60), max_size=3))
@example(["=", "a=b=c", ".=1", "..=1", "rates..lm=1", "rates.lm.x=1", "rates=1"])
@example([f"rates={'[' * 700}"])
@example([f"rates={'{a: ' * 700}"])
@example([f"seed={'9' * 10_000}"])
@example([f"seed=0x{'f' * 100_000}"])
@example([f"out={'x' * 10**5}"])
@example([f"{'a.' * 5000}b=1"])
@example([f"{'x' * 10**6}=1"])
@example([f"{'x' * 10**6}"])
@example(["lora.parts=!!python/object/apply:os.system [true]"])
@example(["rates=&a {lm: *a}"])
@example(["rates=&a [*a]"])
def test_any_text_as_an_override(overrides: list[str]) -> None:
    loads_or_refuses(None, overrides)


@given(VALUES)
def test_any_yaml_file(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    loads_or_refuses(path, [])


@given(st.binary(max_size=200))
@example(BOMB.encode())
@example(f"rates:\n{BOMB}".replace("\na", "\n  a").encode())
@example(b"rates: &a\n  lm: *a\n")
@example(b"\xff\xfe" + "steps: 3".encode("utf-16-le"))
@example(b"steps: \x1b[31m3")
@example(b"? [1, 2]\n: 3\n")
@example(b"1: 2\n")
@example(b"<<: {steps: 3}\n")
@example(b"steps: 3\n---\nsteps: 4\n")
def test_any_bytes_as_a_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    path.write_bytes(content)
    loads_or_refuses(path, [])
