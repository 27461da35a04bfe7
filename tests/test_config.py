import dataclasses
import math
from typing import Annotated, Literal

import ml_collections
import pytest

from aced.bounds import OneOf
from aced.config import Checked, ConfigError, from_config, parse_arg, to_config


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    steps: int | None = None
    rules: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        if self.rate < 0:
            raise ConfigError("rate must not be negative.")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    named: dict[str, Inner] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = (1, 2)
    flag: bool = False


def test_round_trip_through_a_config_dict():
    value = Outer(Inner(0.1, "b", 3, (("x", 2.0),)), {"one": Inner(rate=2.0)}, (3, 4), True)
    assert from_config(Outer, to_config(value)) == value
    assert from_config(Outer, {}) == Outer()


def test_a_choice_follows_its_table():
    table = {"a": 1, "b": 2}

    @dataclasses.dataclass(frozen=True)
    class Choice(Checked):
        name: Annotated[str, OneOf(table)] = "a"

    assert from_config(Choice, {}).name == "a"
    with pytest.raises(ConfigError, match=r"config\.name must be 'a' or 'b', got 'c'"):
        from_config(Choice, {"name": "c"})
    table["c"] = 3
    assert from_config(Choice, to_config(Choice("c"))).name == "c"


def test_optional_settings_can_be_set_where_the_config_is_locked():
    config = to_config(Outer())
    config.lock()
    config.inner.steps = 7
    config.inner.rate = 1  # an int where a float is meant
    assert from_config(Outer, config).inner == Inner(rate=1.0, steps=7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"inner": {"rat": 1.0}},
            r"run\.inner\.rat is not a setting; did you mean run\.inner\.rate\?",
        ),
        ({"nothing": 1}, r"run\.nothing .* known keys: inner, named, size, flag"),
        ({"inner": {"kind": "c"}}, r"run\.inner\.kind must be 'a' or 'b', got 'c'"),
        ({"inner": {"rate": "fast"}}, r"run\.inner\.rate must be float, got 'fast'"),
        ({"inner": {"steps": 1.5}}, r"run\.inner\.steps must be int, got 1\.5"),
        ({"inner": {"rate": math.nan}}, r"run\.inner\.rate must be a number, got nan"),
        ({"inner": {"rate": -1.0}}, r"run\.inner: rate must not be negative"),
        ({"inner": {"rules": [("x", "y")]}}, r"run\.inner\.rules\[0\]\[1\] must be float"),
        ({"named": {"one": {"rate": None}}}, r"run\.named\.one\.rate must be float"),
        ({"size": (1, 2, 3)}, r"run\.size must have 2 values, got \(1, 2, 3\)"),
        ({"size": 1}, r"run\.size must be tuple, got 1"),
        ({"named": {1: {}}}, r"run\.named has the key 1, and keys are names in quotes"),
        ({"flag": 1}, r"run\.flag must be bool, got 1"),
        ({"inner": 3}, r"run\.inner must be a mapping"),
    ],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        from_config(Outer, config, "run")
    with pytest.raises(ConfigError, match=message):
        from_config(Outer, ml_collections.ConfigDict(config), "run")


def test_arguments_of_config_files():
    arg = parse_arg("tiny,steps=3,method=iid", tiny=False, steps=10, method="aced", rate=0.5)
    assert arg.to_dict() == {"tiny": True, "steps": 3, "method": "iid", "rate": 0.5}
    for text, message in [
        ("huge", r"no argument 'huge'\. Its arguments, with their defaults:\n  tiny\n  steps = 1"),
        ("steps=x", r"The argument steps=x must be a whole number, such as steps=1\."),
        ("rate=x", r"The argument rate=x must be a number, such as rate=0\.5\."),
        ("tiny=1", r"The argument tiny=1 must be true or false\."),
        ("steps", "steps="),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_arg(text, tiny=False, steps=1, rate=0.5)
