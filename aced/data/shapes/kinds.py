"""Kinds of things that questions and statements name, such as "a large red star"."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from aced.data.draws import Draws
from aced.data.shapes.scenes import COLOURS, SHAPES, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclasses.dataclass(frozen=True)
class Kind:
    """Things with these attributes; None: any."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing | None) -> bool:
        """Whether `thing` is of this kind; False for None."""
        return thing is not None and all(
            value in (None, getattr(thing, name)) for name, value in vars(self).items()
        )

    @property
    def text(self) -> str:
        """Such as "large red star" or "red thing"."""
        return " ".join(filter(None, (self.size, self.colour, self.shape or "thing")))

    @property
    def one(self) -> str:
        """The text with its article: "an orange star"."""
        return f"an {self.text}" if self.text.startswith("orange") else f"a {self.text}"

    @property
    def many(self) -> str:
        """The plural: "red crosses"."""
        return f"{self.text}es" if self.text.endswith("cross") else f"{self.text}s"


# The attributes of random kinds, drawn uniformly; kinds here have no size.
FORMS = (("colour", "shape"), ("colour", "shape"), ("shape",), ("colour",))


def kind_of(thing: Thing, names: Sequence[str]) -> Kind:
    """The kind of all things with the attributes `names` of `thing`."""
    return Kind(**{name: getattr(thing, name) for name in names})


def any_kind(draws: Draws, names: Sequence[str]) -> Kind:
    """A random kind that names the attributes `names` of colour and shape."""
    options = {"colour": tuple(COLOURS), "shape": tuple(SHAPES)}
    return Kind(**{name: draws.pick(options[name]) for name in names})


def nearly(draws: Draws, kind: Kind) -> Kind:
    """`kind` with another colour or shape, whichever it names."""
    named = [name for name in ("colour", "shape") if getattr(kind, name) is not None]
    name = draws.pick(named)
    options = tuple(COLOURS) if name == "colour" else tuple(SHAPES)
    return dataclasses.replace(kind, **{name: draws.other(options, getattr(kind, name))})


def identifying(things: Sequence[Thing], thing: Thing, names: Sequence[str]) -> Iterator[Kind]:
    """The kinds by the attributes `names`, or some of them, that identify `thing`."""
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            kind = kind_of(thing, chosen)
            if sum(map(kind.fits, things)) == 1:
                yield kind
