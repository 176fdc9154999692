"""Configs: YAML maps 1:1 onto a dataclass, overrides win, and what does not fit is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

from kvfix.bounds import FieldError, number
from kvfix.config import dump_config, load_config
from kvfix.repair.terms.mask import MaskTerm
from kvfix.repair.train.recipe import Recipe


@dataclass(frozen=True)
class Config:
    """One field a kind of value."""

    family: str = "llava"
    steps: int = 100
    lr: float = 1e-3
    resume: bool = True
    layers: tuple[int, ...] = (1, 2)
    rates: tuple[float, ...] = (1e-2,)
    out: str | None = None


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_file_and_overrides_in_that_order(tmp_path: Path) -> None:
    path = _file(tmp_path, "steps: 5\nlr: 0.1\n")
    assert load_config(Config, None) == Config()
    assert load_config(Config, path) == Config(steps=5, lr=0.1)
    assert load_config(Config, path, ["lr=2", "out=a=b"]) == Config(steps=5, lr=2.0, out="a=b")
    assert load_config(Config, _file(tmp_path, "# nothing set\n")) == Config()


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),  # YAML 1.1 reads it as text
        ("lr=3", "lr", 3.0),
        ("layers=[3, 4]", "layers", (3, 4)),
        ("rates=[1e-3, 2]", "rates", (1e-3, 2.0)),
        ("resume=false", "resume", False),
        (" steps =7", "steps", 7),
        ("out=runs/a", "out", "runs/a"),
        ("out=null", "out", None),
    ],
)
def test_spellings_that_mean_the_same(override: str, field: str, value: object) -> None:
    found = getattr(load_config(Config, None, [override]), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stepz=3", r"'stepz' is unknown; known keys: family, steps, lr"),
        ("steps", "expected key=value, found 'steps'"),
        ("steps=1.5", r"'steps': expected int, found float \(1.5\)"),
        ("steps=true", "'steps': expected int, found bool"),
        ("lr=fast", "'lr': expected float, found str"),
        ("lr=true", "'lr': expected float, found bool"),
        ("resume=1", "'resume': expected bool, found int"),
        ("family=[a]", "'family': expected str, found list"),
        ("layers=3", "'layers': expected tuple, found int"),
        ("layers=[a]", "'layers': expected int, found str"),
    ],
)
def test_what_does_not_fit_is_refused(override: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_config(Config, None, [override])


def test_unknown_keys_in_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'lern_rate' is unknown"):
        load_config(Config, _file(tmp_path, "lern_rate: 1\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_config(Config, tmp_path / "none.yaml")


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected YAML"):
        load_config(Config, _file(tmp_path, "family: !!python/object/apply:os.getcwd []\n"))


def test_a_dump_reads_back(tmp_path: Path) -> None:
    config = Config(steps=3, lr=1e-5, out="here", layers=(7,))
    text = dump_config(config)
    assert text.index("family") < text.index("steps") < text.index("out")
    assert load_config(Config, _file(tmp_path, text)) == config


@dataclass(frozen=True)
class Inner:
    """A field of a field."""

    rate: float = 1.0
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse negative rates."""
        if self.rate < 0:
            raise ValueError(f"expected a rate of 0 or more, found {self.rate}")


@dataclass(frozen=True)
class Outer:
    """One level down, with a default of its own."""

    inner: Inner = Inner(rate=2.0)
    steps: int = 1


def test_nested_fields_from_file_and_dotted_overrides(tmp_path: Path) -> None:
    path = _file(tmp_path, "inner: {at: [1, 2]}\n")
    assert load_config(Outer, path) == Outer(Inner(2.0, (1, 2)))
    assert load_config(Outer, path, ["inner.rate=3"]) == Outer(Inner(3.0, (1, 2)))
    assert load_config(Outer, path, ["inner={rate: 4}", "inner.at=[]"]) == Outer(Inner(4.0))
    config = Outer(Inner(0.5, (7,)), 3)
    assert load_config(Outer, _file(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inner.rat=1", r"'inner.rat' is unknown; known keys: rate, at"),
        ("iner.rate=1", r"'iner' is unknown"),
        ("inner.rate=fast", r"'inner.rate': expected float, found str"),
        ("inner=3", r"'inner': expected Inner, found int"),
        ("steps.more=3", r"'steps': expected int, found dict"),
        ("inner.rate=-1", r"config inner: expected a rate of 0 or more, found -1.0"),
    ],
)
def test_nested_fields_that_do_not_fit_are_refused(override: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_config(Outer, None, [override])


@dataclass(frozen=True)
class Bounded:
    """Numbers with and without bounds of their own."""

    free: float = 1.0
    share: float = number(0.5, least=0, below=1)
    count: int = number(3, least=1)
    rates: tuple[float, ...] = number((0.1,), above=0)
    inner: Inner = Inner()


@pytest.mark.parametrize("spelled", [".nan", ".inf", "-.inf", "1e400", "-1e400", "nan", "inf"])
@pytest.mark.parametrize("key", ["free", "share", "inner.rate"])
def test_numbers_that_are_not_finite_are_refused_by_name(key: str, spelled: str) -> None:
    with pytest.raises(ValueError, match=f"config key '{key}': expected a finite number, found"):
        load_config(Bounded, None, [f"{key}={spelled}"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("share=-0.1", "'share': expected a number of 0 or more and below 1, found -0.1"),
        ("share=1", "'share': expected a number of 0 or more and below 1, found 1.0"),
        ("count=0", "'count': expected a whole number of 1 or more, found 0"),
        (f"count={10**30}", "'count': expected a whole number of 32 bits, found 1000"),
        ("rates=[0.5, 0]", "'rates': expected a number above 0, found 0.0"),
        ("rates=[0.5, .nan]", "'rates': expected a finite number, found nan"),
        ("share=true", "'share': expected float, found bool"),
        ("rates=[true]", "'rates': expected float, found bool"),
        ("inner.rate=yes", "'inner.rate': expected float, found bool"),
    ],
)
def test_numbers_out_of_bounds_are_refused_by_name(override: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_config(Bounded, None, [override])


def test_bounds_hold_for_dataclasses_made_in_python_too() -> None:
    for changed in ({"weight": math.nan}, {"weight": -1.0}, {"dice": math.inf}, {"outputs": True}):
        with pytest.raises(FieldError, match=f"^{next(iter(changed))}: expected"):
            MaskTerm(**changed)


def numbers(config: object, prefix: str = "") -> list[str]:
    """Dotted names of all fields that hold a number."""
    found = []
    for f in fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if is_dataclass(value):
            found += numbers(value, f"{prefix}{f.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(prefix + f.name)
    return found


def test_every_number_of_a_recipe_refuses_what_is_none_and_what_is_negative() -> None:
    names = numbers(Recipe())
    assert len(names) > 40 and "losses.kl.every" in names
    for name in names:
        for value in (".nan", ".inf", "-1", "true"):
            with pytest.raises(ValueError, match=f"config key '{name}': expected"):
                load_config(Recipe, None, [f"{name}={value}"])
