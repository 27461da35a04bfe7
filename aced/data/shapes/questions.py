"""Questions about a scene, each with exactly one answer from a closed list.

A question names a thing by attributes that identify it. A place is one of nine cells, as in the
captions: a thing in the top left is not "on the left". For yes-no questions the answer is drawn
first and the attributes in the same way for both, so the text does not reveal the answer.
"""

from collections.abc import Callable, Sequence

from aced.data.draws import Draws
from aced.data.shapes.kinds import FORMS, NUMBERS, any_kind, identifying, kind_of, nearly
from aced.data.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

ANSWERS = ("no", "yes", *COLOURS, *BACKGROUNDS, *SHAPES, *PLACES, *SIZES, *NUMBERS[:5])
TEMPLATES = {
    "color": ("what color is the {}", "what is the color of the {}"),
    "shape": ("what shape is the {}", "what is the shape of the {}"),
    "size": ("what size is the {}", "what is the size of the {}"),
    "place": ("where is the {}",),
    "background": ("what color is the background", "what is the color of the background"),
    "count": ("how many shapes are there",),
    "count_kind": ("how many {} are there",),
    "exists": ("is there {}",),
    "is_at": ("is the {} {}",),
    "is_colored": ("is the {} {}",),
    "relation": ("is the {} {} the {}",),
}
# The change of row and column from the second thing to the first.
_RELATIONS = {
    "above": (-1, 0),
    "below": (1, 0),
    "to the left of": (0, -1),
    "to the right of": (0, 1),
}
_OPPOSITES = {"above": "below", "to the left of": "to the right of"}
_OPPOSITES |= {b: a for a, b in _OPPOSITES.items()}

Asked = tuple[str, str]  # question and answer


def ask(scene: Scene, draws: Draws) -> Asked:
    """Returns a question about `scene` and its answer, one of `ANSWERS`."""
    while (asked := draws.pick(_KINDS)(scene, draws)) is None:
        pass  # the scene has no question of this kind
    return asked


def _make(kind: str, draws: Draws, *parts: str) -> str:
    return draws.pick(TEMPLATES[kind]).format(*parts)


def _attribute(kind: str, attribute: str, others: tuple[str, ...]) -> Callable[..., Asked]:
    """Asks for an attribute of a thing identified by `others` or by its place."""

    def question(scene: Scene, draws: Draws) -> Asked:
        thing = draws.pick(scene.things)
        names = [kind.text for kind in identifying(scene.things, thing, others)]
        name = draws.pick([*names, f"thing {PLACES[thing.place]}"])
        return _make(kind, draws, name), getattr(thing, attribute)

    return question


def _place(scene: Scene, draws: Draws) -> Asked | None:
    thing = draws.pick(scene.things)
    names = [kind.text for kind in identifying(scene.things, thing, ("size", "colour", "shape"))]
    return (_make("place", draws, draws.pick(names)), PLACES[thing.place]) if names else None


def _count_kind(scene: Scene, draws: Draws) -> Asked:
    kind = kind_of(draws.pick(scene.things), draws.pick(FORMS))
    kind = nearly(draws, kind) if draws.coin() else kind
    return _make("count_kind", draws, kind.many), NUMBERS[sum(map(kind.fits, scene.things))]


def _exists(scene: Scene, draws: Draws) -> Asked:
    form = draws.pick(FORMS)
    kind = kind_of(draws.pick(scene.things), form)
    if draws.coin():
        return _make("exists", draws, kind.one), "yes"
    kind = nearly(draws, kind)  # the scene has a thing of this shape or of this colour
    while any(map(kind.fits, scene.things)):
        kind = any_kind(draws, form)
    return _make("exists", draws, kind.one), "no"


def _is(kind: str, value_of: Callable[[Thing], str], values: Sequence[str], others: Sequence[str]):
    """Asks whether a thing identified by `others` has one of `values`."""

    def question(scene: Scene, draws: Draws) -> Asked | None:
        thing = draws.pick(scene.things)
        names = [kind.text for kind in identifying(scene.things, thing, others)]
        if not names:
            return None
        name, yes = draws.pick(names), draws.coin()
        value = value_of(thing) if yes else draws.other(values, value_of(thing))
        return _make(kind, draws, name, value), ANSWERS[yes]

    return question


def _relation(scene: Scene, draws: Draws) -> Asked | None:
    named = {
        thing: [kind.text for kind in identifying(scene.things, thing, ("size", "colour", "shape"))]
        for thing in scene.things
    }
    things = [thing for thing, names in named.items() if names]
    if len(things) < 2:
        return None
    first = draws.pick(things)
    second = draws.other(things, first)
    (row, column), (other_row, other_column) = divmod(first.place, 3), divmod(second.place, 3)
    change = row - other_row, column - other_column
    true = [
        relation
        for relation, (down, right) in _RELATIONS.items()
        if down * change[0] + right * change[1] > 0
    ]
    relation, yes = draws.pick(true), draws.coin()
    relation = relation if yes else _OPPOSITES[relation]  # false for diagonal places, too
    names = draws.pick(named[first]), draws.pick(named[second])
    return _make("relation", draws, names[0], relation, names[1]), ANSWERS[yes]


# Kinds are drawn uniformly from this list, again if the scene has no such question (one thing has
# no relation). Six of sixteen are yes-no questions.
_KINDS = (
    *[_attribute("color", "colour", ("size", "shape"))] * 2,
    *[_attribute("shape", "shape", ("size", "colour"))] * 2,
    _attribute("size", "size", ("colour", "shape")),
    *[_place] * 2,
    lambda scene, draws: (_make("background", draws), scene.background),
    lambda scene, draws: (_make("count", draws), NUMBERS[len(scene.things)]),
    _count_kind,
    *[_exists] * 2,
    _is("is_at", lambda thing: PLACES[thing.place], PLACES, ("size", "colour", "shape")),
    _is("is_colored", lambda thing: thing.colour, tuple(COLOURS), ("size", "shape")),
    *[_relation] * 2,
)
