"""Statements about two pictures, true or false, after NLVR2 (A. Suhr et al., arXiv:1811.00491).

The truth is drawn first, by a fair coin, so that the text does not reveal it. Then the scenes are
changed to make the statement true or false, in the same way in both cases: things get another
colour or shape, and their number changes only in statements about numbers.

- Statements of `ALIKE` compare: given either picture alone, they are true half of the time.
- Statements of `BOTH` require something of each picture, so a picture that lacks it makes them
  false. Exactly one picture, either equally often, fails in false ones, so that one picture alone
  decides at most three quarters of them.
"""

import dataclasses
from collections.abc import Callable

from aced.data.draws import Draws
from aced.data.shapes.kinds import FORMS, NUMBERS, Kind, any_kind, kind_of, nearly
from aced.data.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

CLASSES = ("false", "true")
_MOST = 4  # things in a scene

Pair = tuple[Scene, Scene]
Made = tuple[Pair, str]  # the scenes, changed, and the statement


@dataclasses.dataclass(frozen=True)
class Compared:
    """A statement about two scenes."""

    scenes: Pair
    text: str
    label: int  # position in CLASSES
    kind: str  # of statement, one of ALIKE or BOTH


def compare(pair: Pair, draws: Draws) -> Compared:
    """Returns a statement about the scenes `pair`, which it changes to be true or false."""
    kind, is_true = draws.pick((*ALIKE, *BOTH)), draws.coin()
    scenes, text = (ALIKE | BOTH)[kind](pair, draws, is_true)
    return Compared(scenes, text, int(is_true), kind)


TEXTS = {
    "background": "both pictures have the same background",
    "count": "both pictures have the same number of shapes",
    "together": "together there are {} shapes",
    "exactly_one": "exactly one picture has {}",
    "both_or_neither": "either both pictures or neither of them have {}",
    "colour": "the largest thing has the same color in both pictures",
    "shape": "the largest thing has the same shape in both pictures",
    "place": "the largest thing is in the same place in both pictures",
    "both": "both pictures have {}",
    "neither": "neither picture has {}",
    "only": "only the {} picture has {}",
    "more": "there are more shapes in the {} picture",
    "backgrounds": "the background of both pictures is {}",
}
_SIDES = ("left", "right")


def _same_background(pair: Pair, draws: Draws, is_true: bool) -> Made:
    first, second = pair
    other = draws.other(tuple(BACKGROUNDS), first.background)
    background = first.background if is_true else other
    return (first, dataclasses.replace(second, background=background)), TEXTS["background"]


def _same_count(pair: Pair, draws: Draws, is_true: bool) -> Made:
    numbers = range(1, _MOST + 1)
    count = draws.pick(numbers)
    other = count if is_true else draws.other(numbers, count)
    return _with_counts(pair, draws, (count, other)), TEXTS["count"]


def _together(pair: Pair, draws: Draws, is_true: bool) -> Made:
    total = draws.pick(range(3, 2 * _MOST))
    # Both counts are drawn from the possible parts of the total. In a false statement the second
    # one is shifted cyclically, so that each picture alone has the same distribution of counts.
    parts = range(max(1, total - _MOST), min(_MOST, total - 1) + 1)
    count = draws.pick(parts)
    shift = 0 if is_true else 1 + draws.below(len(parts) - 1)
    other = parts[(total - count - parts[0] + shift) % len(parts)]
    return _with_counts(pair, draws, (count, other)), TEXTS["together"].format(NUMBERS[total])


def _agree(name: str, agree: bool) -> Callable[[Pair, Draws, bool], Made]:
    def statement(pair: Pair, draws: Draws, is_true: bool) -> Made:
        has = draws.coin()
        scenes, kind = _having(pair, draws, (has, has == (is_true == agree)))
        return scenes, TEXTS[name].format(kind.one)

    return statement


def _same_main(name: str, options: tuple[str, ...]) -> Callable[[Pair, Draws, bool], Made]:
    def statement(pair: Pair, draws: Draws, is_true: bool) -> Made:
        first, second = pair
        value = getattr(first.things[0], name)
        main = dataclasses.replace(
            second.things[0], **{name: value if is_true else draws.other(options, value)}
        )
        return (first, _with(second, 0, main)), TEXTS[name]

    return statement


def _same_place(pair: Pair, draws: Draws, is_true: bool) -> Made:
    first, second = pair
    first_place = first.things[0].place
    place = first_place if is_true else draws.other(range(len(PLACES)), first_place)
    old = second.things[0].place
    moved = {old: place, place: old}  # swaps it with the thing at its new place
    things = tuple(
        dataclasses.replace(thing, place=moved.get(thing.place, thing.place))
        for thing in second.things
    )
    return (first, dataclasses.replace(second, things=things)), TEXTS["place"]


def _each(name: str, has: bool) -> Callable[[Pair, Draws, bool], Made]:
    def statement(pair: Pair, draws: Draws, is_true: bool) -> Made:
        scenes, kind = _having(pair, draws, _or_one_fails((has, has), draws, is_true))
        return scenes, TEXTS[name].format(kind.one)

    return statement


def _only(pair: Pair, draws: Draws, is_true: bool) -> Made:
    side = draws.below(2)
    has = _or_one_fails((side == 0, side == 1), draws, is_true)
    scenes, kind = _having(pair, draws, has)
    return scenes, TEXTS["only"].format(_SIDES[side], kind.one)


def _more(pair: Pair, draws: Draws, is_true: bool) -> Made:
    # Counts differ by one: a picture with one or four shapes decides alone, two or three do not.
    fewer, side = 1 + draws.below(_MOST - 1), draws.below(2)
    counts = (fewer + 1, fewer) if (side == 0) == is_true else (fewer, fewer + 1)
    return _with_counts(pair, draws, counts), TEXTS["more"].format(_SIDES[side])


def _backgrounds(pair: Pair, draws: Draws, is_true: bool) -> Made:
    background = draws.pick(tuple(BACKGROUNDS))
    fits = _or_one_fails((True, True), draws, is_true)
    backgrounds = (
        background if fit else draws.other(tuple(BACKGROUNDS), background) for fit in fits
    )
    scenes = tuple(
        dataclasses.replace(scene, background=own)
        for scene, own in zip(pair, backgrounds, strict=True)
    )
    return scenes, TEXTS["backgrounds"].format(background)


def _or_one_fails(required: tuple[bool, bool], draws: Draws, is_true: bool) -> tuple[bool, bool]:
    """`required`, with one of the two negated if the statement is false."""
    failing = draws.below(2)
    return tuple(has != (not is_true and i == failing) for i, has in enumerate(required))


def _having(pair: Pair, draws: Draws, has: tuple[bool, bool]) -> tuple[Pair, Kind]:
    """Scenes with or without (`has`) a thing of a random kind, and the kind."""
    kind = any_kind(draws, draws.pick(FORMS))
    scenes = tuple(
        _with_kind(scene, draws, kind) if is_there else _without_kind(scene, draws, kind)
        for scene, is_there in zip(pair, has, strict=True)
    )
    return scenes, kind


def _with_kind(scene: Scene, draws: Draws, kind: Kind) -> Scene:
    """`scene` with one of its things changed to `kind`."""
    i = draws.below(len(scene.things))
    named = {name: value for name, value in vars(kind).items() if value is not None}
    return _with(scene, i, dataclasses.replace(scene.things[i], **named))


def _without_kind(scene: Scene, draws: Draws, kind: Kind) -> Scene:
    """`scene` with all things of `kind` changed; half of the time it has a similar thing."""
    if draws.coin():
        scene = _with_kind(scene, draws, nearly(draws, kind))
    names = [name for name, value in vars(kind).items() if value is not None]
    for i, thing in enumerate(scene.things):
        if kind.fits(thing):
            changed = nearly(draws, kind_of(thing, names))
            named = {name: getattr(changed, name) for name in names}
            scene = _with(scene, i, dataclasses.replace(thing, **named))
    return scene


def _with_counts(pair: Pair, draws: Draws, counts: tuple[int, int]) -> Pair:
    return tuple(_with_count(scene, draws, n) for scene, n in zip(pair, counts, strict=True))


def _with_count(scene: Scene, draws: Draws, count: int) -> Scene:
    """`scene` with its first `count` things, or with more random ones."""
    things = list(scene.things[:count])
    smaller = tuple(SIZES)[: tuple(SIZES).index(things[0].size)]
    while len(things) < count:
        place = draws.other(range(len(PLACES)), *(thing.place for thing in things))
        shape, colour = draws.pick(tuple(SHAPES)), draws.pick(tuple(COLOURS))
        things.append(Thing(shape, colour, draws.pick(smaller), place, (0.0, 0.0)))
    return dataclasses.replace(scene, things=tuple(things))


def _with(scene: Scene, i: int, thing: Thing) -> Scene:
    things = (*scene.things[:i], thing, *scene.things[i + 1 :])
    return dataclasses.replace(scene, things=things)


ALIKE = {
    "background": _same_background,
    "count": _same_count,
    "together": _together,
    "exactly_one": _agree("exactly_one", False),
    "both_or_neither": _agree("both_or_neither", True),
    "colour": _same_main("colour", tuple(COLOURS)),
    "shape": _same_main("shape", tuple(SHAPES)),
    "place": _same_place,
}
BOTH = {
    "both": _each("both", True),
    "neither": _each("neither", False),
    "only": _only,
    "more": _more,
    "backgrounds": _backgrounds,
}
