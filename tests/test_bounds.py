"""Bounds of settings: wherever a dataclass is made, in messages and in `--help`."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from absl import flags
from absl.testing import flagsaver
from annotated_types import Ge, Interval, MinLen

from aced import bounds, flag_settings
from aced.bounds import NonEmpty, NonNegativeFloat, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError, MayChange, from_config
from aced.flag_settings import FlagSettings, setting


@dataclasses.dataclass(frozen=True)
class Bounded(Checked):
    steps: MayChange[PositiveInt] = 1
    every: PositiveInt | None = None
    rate: NonNegativeFloat = 0.0
    limit: Annotated[float, Interval(gt=0, le=math.inf)] = 1.0
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    std: tuple[PositiveFloat, ...] = (1.0,)
    rules: tuple[tuple[str, NonNegativeFloat], ...] = ()
    names: Annotated[tuple[str, ...], MinLen(1)] = ("a",)
    kind: MayChange[Literal["a", "b"] | None] = "a"

    def _check(self):
        if self.rate > self.steps:
            raise ConfigError("rate must be at most steps.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"every": -3}, "every must be at least 1, got -3."),
        ({"rate": math.nan}, "rate must be at least 0, got nan."),
        ({"rate": math.inf}, "rate must be at least 0 and finite, got inf."),
        ({"limit": math.nan}, "limit must be above 0, got nan."),
        ({"share": 1.0}, "share must be at least 0 and below 1, got 1.0."),
        ({"std": (1.0, 0.0)}, "std[1] must be above 0, got 0.0."),
        ({"rules": (("x", 1.0), ("y", -1.0))}, "rules[1][1] must be at least 0, got -1.0."),
        ({"names": ()}, "names is empty; set it."),
        ({"kind": "c"}, "kind must be 'a' or 'b', got 'c'."),
        ({"steps": -(10**400)}, f"steps must be at least 1, got {-(10**400)}."),
        ({"rate": 2.0}, "rate must be at most steps."),
    ],
)
def test_values_beyond_bounds_are_refused(changes, message):
    with pytest.raises(ConfigError) as error:
        Bounded(**changes)
    assert str(error.value) == message
    with pytest.raises(ConfigError) as error:
        from_config(Bounded, changes, "run")
    expected = ("run: " if "steps." in message else "run.") + message
    if "nan" in message:  # no bound is needed for that
        expected = expected.partition(" must")[0] + " must be a number, got nan."
    assert str(error.value) == expected


def test_values_within_bounds():
    made = Bounded(steps=1, every=None, limit=math.inf, share=0.0, kind=None)
    assert (made.limit, made.kind) == (math.inf, None)
    assert from_config(Bounded, {"every": 2, "limit": math.inf}).every == 2


def test_a_choice_has_the_type_of_its_alternative():
    assert bounds.wrong(Literal[1, 2], True, "pictures") == "pictures must be 1 or 2, got True."
    assert bounds.wrong(Literal[1, 2], 2.0, "pictures") == "pictures must be 1 or 2, got 2.0."
    assert bounds.wrong(Literal[1, 2], 2, "pictures") is None


@dataclasses.dataclass(frozen=True)
class Flags(FlagSettings):
    bounds_out: NonEmpty = setting("", "Folder.")
    bounds_to: Literal["npz", "json"] = setting("", "Format.")
    bounds_threads: Annotated[int, Ge(0)] = setting(2, "Threads.")
    bounds_share: bounds.Fraction = setting(0.5, "Share.")
    bounds_files: tuple[str, ...] = setting((), "Files.")


def test_flags_show_bounds_and_choices_and_refuse_others():
    defined = [field.name for field in dataclasses.fields(Flags)]
    try:
        flag_settings.define(Flags)
        assert flags.FLAGS["bounds_threads"].help == "Threads. At least 0."
        assert flags.FLAGS["bounds_share"].help == "Share. At least 0 and at most 1."
        assert flags.FLAGS["bounds_to"].parser.enum_values == ["npz", "json"]
        with flagsaver.flagsaver(bounds_out="file:///x", bounds_to="npz", bounds_files=["a", "b"]):
            assert flag_settings.read(Flags) == Flags("/x", "npz", 2, 0.5, ("a", "b"))
            flags.FLAGS.bounds_threads = -1
            with pytest.raises(ConfigError, match="--bounds_threads must be at least 0"):
                flag_settings.read(Flags)
        with (
            flagsaver.flagsaver(bounds_to="npz"),
            pytest.raises(ConfigError, match="_out is empty"),
        ):
            flag_settings.read(Flags)
        with (
            flagsaver.flagsaver(bounds_out="x"),
            pytest.raises(ConfigError, match="_to must be 'n"),
        ):
            flag_settings.read(Flags)
    finally:
        for name in defined:
            delattr(flags.FLAGS, name)
