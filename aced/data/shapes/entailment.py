"""Statements about a picture of which one place is covered: entailment, neutral, contradiction.

The classes are SNLI-VE's (N. Xie et al., "Visual Entailment: A Novel Task for Fine-Grained Image
Understanding", arXiv:1901.06706). Every statement is about one place, a cell as in the captions.
Of a place that can be seen it is true or false; of the covered one nobody can tell: what lies there
is not drawn at all, so that the picture is the same whether the statement holds or not.

The class cannot be told from the text: it is drawn first, then the template and which attributes
it names, alike for all classes; and the rules by which places, colours and shapes are drawn treat
all of them alike, so that in every class each is as frequent as any other. Nor can it be told from
the picture: where the cover is does not depend on the class.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from aced.data.draws import Draws
from aced.data.shapes.kinds import FORMS, Kind, any_kind, kind_of, nearly
from aced.data.shapes.scenes import PLACES, Scene, Thing, draw

CLASSES = ("entailment", "neutral", "contradiction")
_STRIPES = (70, 200)  # grey levels of the cover, which no background or thing has


def _is_something(thing: Thing | None, _: Kind) -> bool:
    return thing is not None


def _is_nothing(thing: Thing | None, _: Kind) -> bool:
    return thing is None


def _fits(thing: Thing | None, kind: Kind) -> bool:
    return kind.fits(thing)


def _fits_not(thing: Thing | None, kind: Kind) -> bool:
    return not kind.fits(thing)


# Statements about a place, and when they are true of the thing that is there (None: nothing).
TEMPLATES: dict[str, Callable[[Thing | None, Kind], bool]] = {
    "there is {one} {place}": _fits,
    "{place} there is {one}": _fits,
    "there is no {kind} {place}": _fits_not,
    "{place} there is no {kind}": _fits_not,
    "there is something {place}": _is_something,
    "there is nothing {place}": _is_nothing,
}
_DRAWN = (*tuple(TEMPLATES)[:4], *TEMPLATES)  # as often as they stand here


@dataclasses.dataclass(frozen=True)
class Judged:
    """A statement about a scene that is covered in part."""

    text: str
    label: int  # position in CLASSES
    covered: int  # position in PLACES


def judge(scene: Scene, draws: Draws) -> Judged:
    """Returns a statement about `scene`, its class, and the place that is covered."""
    at = {thing.place: thing for thing in scene.things}
    others = scene.things[1:]
    # A covered place hides something half of the time where there is something to hide, and never
    # the main object: a picture without any thing would be told from the others.
    empty = [place for place in range(len(PLACES)) if place not in at]
    hides = bool(others) and draws.coin()
    covered = draws.pick(others).place if hides else draws.pick(empty)
    label = draws.below(len(CLASSES))
    template, form = draws.pick(_DRAWN), draws.pick(FORMS)
    if CLASSES[label] == "neutral":
        # True of what is hidden, or not: half of the time it names that.
        is_true = hides and draws.coin()
        kind = kind_of(at[covered], form) if is_true else _proposed(scene, draws, form)
        return Judged(_text(template, kind, covered), label, covered)
    visible = [place for place in range(len(PLACES)) if place != covered]
    things = [place for place in visible if place in at]
    while True:
        place = draws.pick(things if draws.coin() else visible)
        kind = _proposed(scene, draws, form)
        if TEMPLATES[template](at.get(place), kind) == (CLASSES[label] == "entailment"):
            return Judged(_text(template, kind, place), label, covered)


def _proposed(scene: Scene, draws: Draws, form: tuple[str, ...]) -> Kind:
    """The kind of a thing of the scene, or nearly so, or any."""
    kind = kind_of(draws.pick(scene.things), form)
    return draws.pick((kind, kind, nearly(draws, kind), any_kind(draws, form)))


def _text(template: str, kind: Kind, place: int) -> str:
    return template.format(one=kind.one, kind=kind.text, place=PLACES[place])


def draw_covered(scene: Scene, covered: int, resolution: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of `scene` without what is at `covered`, and a grey-striped square over it.

    The cover lies on top, and hides the rims of large neighbours.
    """
    things = tuple(thing for thing in scene.things if thing.place != covered)
    image = draw(dataclasses.replace(scene, things=things), resolution)
    row, column = divmod(covered, 3)
    edges = [round((0.08 + 0.28 * k) * resolution) for k in range(4)]
    part = image[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
    y, x = np.indices(part.shape[:2])
    stripe = (x + y) // max(1, resolution // 24) % 2
    part[:] = np.array(_STRIPES, np.uint8)[stripe][..., None]
    return image
