"""Types of settings that have bounds, and the check of a value by its type."""

import itertools
import math
import operator
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

NonNegativeInt = Annotated[int, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
ProperFraction = Annotated[float, Interval(ge=0, lt=1)]
Finite = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
NonEmpty = Annotated[str, MinLen(1)]

PositiveOrInfinite = Annotated[float, Interval(gt=0, le=math.inf)]
NonNegativeOrInfinite = Annotated[float, Interval(ge=0, le=math.inf)]

_INFINITE = (math.inf, -math.inf)
_BOUNDS = {  # the attribute with the bound, the comparison with a value, and its words
    Gt: ("gt", operator.gt, "above"),
    Ge: ("ge", operator.ge, "at least"),
    Lt: ("lt", operator.lt, "below"),
    Le: ("le", operator.le, "at most"),
}


class OneOf:
    """The names in tables, which are read when a value is checked: users may add to them."""

    def __init__(self, *tables: Iterable[str]):
        self._tables = tables

    def names(self) -> tuple[str, ...]:
        """All names, in their order."""
        return tuple(itertools.chain(*self._tables))


def describe(hint: Any) -> str:
    """Returns the bounds of a type in words, "at least 0 and below 1"; "" if it has none."""
    finite = (f"{words} {bound}" for words, _, bound in _bounds(hint) if bound not in _INFINITE)
    return " and ".join(finite)


def wrong(hint: Any, value: Any, name: str) -> str | None:
    """Returns a message if a value violates the bounds or choices of its type, else None.

    Members of tuples are checked by their own types, and None always passes. Where a number has a
    bound, NaN is refused, and so is infinity unless it is itself a bound.

    Args:
        hint: the type of the setting, with its annotations.
        value: of the setting.
        name: of the setting, for the message.
    """
    if value is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if any(isinstance(item, MinLen) and len(value) < item.min_length for item in args[1:]):
            return f"{name} is empty; set it."
        choices = (wrong_choice(x.names(), value, name) for x in args[1:] if isinstance(x, OneOf))
        if message := next(filter(None, choices), None):
            return message
        bounds = list(_bounds(hint))
        if not all(holds(value, bound) for _, holds, bound in bounds):
            return f"{name} must be {describe(hint)}, got {value!r}."
        if bounds and value in _INFINITE and all(value != bound for *_, bound in bounds):
            return f"{name} must be {describe(hint)} and finite, got {value!r}."
        return wrong(args[0], value, name)
    if origin in (typing.Union, types.UnionType):
        messages = [wrong(inner, value, name) for inner in args if inner is not types.NoneType]
        return messages[0] if all(messages) else None
    if origin is Literal:
        return wrong_choice(args, value, name)
    if origin is tuple:
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        pairs = enumerate(zip(inner, value, strict=False))
        messages = (wrong(h, v, f"{name}[{i}]") for i, (h, v) in pairs)
        return next(filter(None, messages), None)
    return None


def wrong_choice(choices: Iterable[Any], value: Any, name: str) -> str | None:
    """Returns a message, or None if `value` equals one of `choices` and has its type."""
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return None
    return f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}."


def _bounds(hint: Any) -> Iterator[tuple[str, Any, Any]]:
    """The words, the comparison and the number of each bound of an annotated type."""
    for item in getattr(hint, "__metadata__", ()):
        for bound in item if isinstance(item, Interval) else (item,):
            if type(bound) in _BOUNDS:
                name, holds, words = _BOUNDS[type(bound)]
                yield words, holds, getattr(bound, name)
