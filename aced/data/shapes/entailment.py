"""Statements about a picture with one covered place: entailment, neutral, contradiction.

The classes are SNLI-VE's (N. Xie et al., "Visual Entailment: A Novel Task for Fine-Grained Image
Understanding", arXiv:1901.06706). Every statement is about one place, a cell as in the captions.
About a visible place it is true or false; about the covered place it is undecidable, because the
thing below the cover is not drawn.

The text alone does not reveal the class: the class is drawn first, then the template and its
attributes in the same way for all classes, with every place, colour and shape equally frequent in
each. Neither does the picture: the place of the cover does not depend on the class.
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


# Statements about a place, and whether they are true of the thing at that place (None: empty).
TEMPLATES: dict[str, Callable[[Thing | None, Kind], bool]] = {
    "there is {one} {place}": lambda thing, kind: kind.fits(thing),
    "{place} there is {one}": lambda thing, kind: kind.fits(thing),
    "there is no {kind} {place}": lambda thing, kind: not kind.fits(thing),
    "{place} there is no {kind}": lambda thing, kind: not kind.fits(thing),
    "there is something {place}": lambda thing, kind: thing is not None,
    "there is nothing {place}": lambda thing, kind: thing is None,
}
_DRAWN = (*tuple(TEMPLATES)[:4], *TEMPLATES)  # drawn uniformly: the first four twice as often


@dataclasses.dataclass(frozen=True)
class Judged:
    """A statement about a partly covered scene."""

    text: str
    label: int  # position in CLASSES
    covered: int  # position in PLACES


def judge(scene: Scene, draws: Draws) -> Judged:
    """Returns a statement about `scene`, its class, and the place that is covered."""
    at = {thing.place: thing for thing in scene.things}
    others = scene.things[1:]
    # If there are other objects, the cover hides one half of the time. It never hides the main
    # object, since a picture without objects would stand out.
    empty = [place for place in range(len(PLACES)) if place not in at]
    hides = bool(others) and draws.coin()
    covered = draws.pick(others).place if hides else draws.pick(empty)
    label = draws.below(len(CLASSES))
    template, form = draws.pick(_DRAWN), draws.pick(FORMS)
    if CLASSES[label] == "neutral":
        # Half of the time the statement is true of a hidden thing.
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
    """The kind of a thing of the scene, a similar one, or a random one."""
    kind = kind_of(draws.pick(scene.things), form)
    return draws.pick((kind, kind, nearly(draws, kind), any_kind(draws, form)))


def _text(template: str, kind: Kind, place: int) -> str:
    return template.format(one=kind.one, kind=kind.text, place=PLACES[place])


def draw_covered(scene: Scene, covered: int, resolution: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of `scene` without the thing at `covered`, with a grey-striped square on top.

    The cover may hide the rims of large neighbours.
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
