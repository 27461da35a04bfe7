"""The embedded data set: captioned scenes of coloured shapes, drawn from (seed, index).

No download, no state, random access. The noise of every caption (wrong, vague or repeated) is
known, so that a selection method can be checked against the truth.

A scene has one main object, the largest, in one of nine places, and up to three smaller ones. The
caption names the main object, its place, the background, and the positions of the others: "a large
red star in the top left on a black background, above a tiny blue circle".
"""

import dataclasses
import functools
import re
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import UInt8

from aced.bounds import NonNegativeFloat
from aced.config import Checked, ConfigError
from aced.data.draws import Draws
from aced.data.records import check_index

cv2.setNumThreads(0)  # many reader threads draw pictures already

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (40, 80, 220),
    "yellow": (250, 220, 30),
    "purple": (130, 40, 170),
    "orange": (255, 127, 14),
    "cyan": (30, 210, 225),
    "pink": (250, 140, 190),
}
BACKGROUNDS = {
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "gray": (125, 125, 125),
    "brown": (100, 65, 40),
}
# Radii as shares of the picture's side. The main object is never tiny, the others are smaller.
SIZES = {"tiny": 0.08, "small": 0.12, "medium": 0.165, "large": 0.215}
# Grid cells, row by row; a cell's centre lies at 0.22, 0.5 or 0.78 of the side.
PLACES = (
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the center",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)
VAGUE = (
    "a picture with some shapes",
    "some shapes on a background",
    "a picture",
    "an image of shapes and colors",
)
TEMPLATES = (
    "a {}",
    "a picture of a {}",
    "a small {}",
    "a medium {}",
    "a large {}",
    "a {} in the center",
    "a {} on a black background",
    "a {} on a white background",
)
NOISE_KINDS = ("clean", "wrong", "vague", "duplicate")

_PREFIXES = ("", "", "a picture of ", "there is ")
_OBJECTS = (1, 1, 1, 2, 2, 2, 2, 3, 3, 4)  # objects per scene, drawn uniformly from this list
_HUBS = 16  # duplicated captions repeat those of this many scenes
_POINTS = 4  # fixed-point bits of a contour's coordinates
_SPLITS = {"train": 0, "val": 1}


def _turn(n: int, radii: tuple[float, ...] = (1.0,), start: float = 0.25) -> np.ndarray:
    """A closed outline with corners at n equal angles, cycling through `radii`."""
    angle = 2 * np.pi * (np.arange(n) / n - start)
    radius = np.resize(np.asarray(radii), n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cross() -> np.ndarray:
    a, b = 0.34, 0.94
    corner = np.array([(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b)])
    return np.concatenate([corner, -corner])


def _semicircle() -> np.ndarray:
    angle = np.linspace(np.pi, 2 * np.pi, 20)
    return np.stack([np.cos(angle), np.sin(angle) + 0.45], axis=1)


# Outlines in units of the radius, y down; a second outline inside the first one is a hole.
SHAPES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_turn(36),),
    "square": (_turn(4, (1.2,), 0.125),),
    "triangle": (_turn(3, (1.15,)) + np.array([0.0, 0.2]),),
    "diamond": (_turn(4) * (0.72, 1.15),),
    "star": (_turn(10, (1.2, 0.5)),),
    "cross": (_cross(),),
    "ring": (_turn(36), _turn(36, (0.55,))),
    "semicircle": (_semicircle(),),
}
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
_MAIN_SIZES = tuple(SIZES)[1:]
# Every main object: shape x colour x size x place x background.
_MAINS = len(CLASS_NAMES) * len(_MAIN_SIZES) * len(PLACES) * len(BACKGROUNDS)


@dataclasses.dataclass(frozen=True)
class ShapesConfig(Checked):
    """Which scenes are drawn, and what share of their captions is bad."""

    # Examples; any number, since none is stored.
    size: Annotated[int, Interval(ge=0, lt=2**31)] = 100_000
    seed: int = 0  # other seeds give other scenes
    split: Literal["train", "val"] = "train"  # disjoint streams; "val" is always clean
    # Shares of the train captions that belong to another scene, are vague, or repeat one of 16
    # captions. Pictures and the other captions don't depend on these shares.
    wrong: NonNegativeFloat = 0.0
    vague: NonNegativeFloat = 0.0
    duplicate: NonNegativeFloat = 0.0
    resolution: Annotated[int, Ge(16)] = 64  # side of the drawn picture, pixels
    # "captions", or a task on the same scenes that a model is fine-tuned on (`shapes.tasks`):
    # "questions" and answers, "entailment" of statements about a partly covered picture, and
    # statements about "two_pictures". Not in the repr, because the fingerprint in existing
    # embedding caches is made from a repr without it.
    task: Literal["captions", "questions", "entailment", "two_pictures"] = dataclasses.field(
        default="captions", repr=False
    )

    def _check(self) -> None:
        shares = (self.wrong, self.vague, self.duplicate)
        if sum(shares) > 1:
            raise ConfigError(
                "shapes.wrong, shapes.vague and shapes.duplicate are shares of the data set: "
                f"together at most 1, got {shares}."
            )
        if self.task != "captions" and any(shares):
            raise ConfigError(
                "shapes.wrong, shapes.vague and shapes.duplicate are shares of captions, and "
                f"shapes.task={self.task!r} has none; leave them at 0."
            )


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene; the names are keys of the tables above."""

    shape: str
    colour: str
    size: str
    place: int  # position in PLACES
    shift: tuple[float, float]  # of its centre from the place's, shares of the side


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a picture; `things[0]` is the main object."""

    things: tuple[Thing, ...]
    background: str
    prefix: str

    @property
    def label(self) -> int:
        """Position of the main object in CLASS_NAMES."""
        return CLASS_NAMES.index(f"{self.things[0].colour} {self.things[0].shape}")


class Shapes:
    """The captioned scenes; each is determined by the config and its index."""

    def __init__(self, config: ShapesConfig):
        if config.task != "captions":
            raise ConfigError(
                f"shapes.task={config.task!r} has no captions; open it with "
                "aced.data.shapes.tasks.open_shapes."
            )
        self.config = config
        self.name = f"shapes/{config.split}"
        self.fingerprint = f"shapes-v1 {config}"
        self.class_names = CLASS_NAMES

    def __len__(self) -> int:
        return self.config.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws example `index`.

        Returns:
            `image` uint8 [h w 3]; `texts`, a tuple of one caption; `id`; `label`, the main object's
            position in CLASS_NAMES; `noise`, the caption's position in NOISE_KINDS; `is_noisy`.

        Raises:
            IndexError: `index` is outside the data set.
        """
        index = check_index(self, index)
        scene = self.scene(index)
        noise, text = self._caption(index, scene)
        return {
            "image": draw(scene, self.config.resolution),
            "texts": (text,),
            "id": index,
            "label": scene.label,
            "noise": noise,
            "is_noisy": noise != 0,
        }

    def scene(self, index: int) -> Scene:
        """The scene of example `index`."""
        raw = _random(self.config.seed, self.config.split, index, 40)
        # Main objects come in a shuffled order without repetition, so that any 6,912 consecutive
        # examples, such as a validation set, have distinct captions and balanced classes.
        code = int(_main_order(self.config.seed, self.config.split)[index % _MAINS])
        code, shape = divmod(code, len(SHAPES))
        code, colour = divmod(code, len(COLOURS))
        code, size = divmod(code, len(_MAIN_SIZES))
        background, place = divmod(code, len(PLACES))
        main = Thing(
            tuple(SHAPES)[shape], tuple(COLOURS)[colour], _MAIN_SIZES[size], place, _shift(raw[0])
        )
        things = [main]
        free = [cell for cell in range(len(PLACES)) if cell != place]
        for k in range(_OBJECTS[raw[1] % len(_OBJECTS)] - 1):
            shape, colour, size, cell, shift = raw[4 + 5 * k : 9 + 5 * k]
            smaller = tuple(SIZES)[: tuple(SIZES).index(main.size)]
            things.append(
                Thing(
                    tuple(SHAPES)[shape % len(SHAPES)],
                    tuple(COLOURS)[colour % len(COLOURS)],
                    smaller[size % len(smaller)],
                    free.pop(cell % len(free)),
                    _shift(shift),
                )
            )
        prefix = _PREFIXES[raw[2] % len(_PREFIXES)]
        return Scene(tuple(things), tuple(BACKGROUNDS)[background], prefix)

    def _caption(self, index: int, scene: Scene) -> tuple[int, str]:
        """The kind of noise of example `index` and its caption."""
        config = self.config
        if config.split == "val":
            return 0, describe(scene)
        # A separate stream, so that the shares do not change pictures.
        kind, pick = _random(config.seed, "noise", index, 2)
        u = kind / 2**64
        if u < config.wrong and config.size > 1:
            other = (index + 1 + pick % (config.size - 1)) % config.size
            return 1, describe(self.scene(other))
        if config.wrong <= u < config.wrong + config.vague:
            return 2, VAGUE[pick % len(VAGUE)]
        if config.wrong + config.vague <= u < config.wrong + config.vague + config.duplicate:
            return 3, describe(self.scene(pick % min(_HUBS, config.size)))
        return 0, describe(scene)


def describe(scene: Scene) -> str:
    """The full, true caption of a scene."""
    main, *others = scene.things
    text = f"{scene.prefix}{_noun(main)} {PLACES[main.place]} on a {scene.background} background"
    relations = [f"{_relation(main.place, other.place)} {_noun(other)}" for other in others]
    return f"{text}, {' and '.join(relations)}" if relations else text


def draw(scene: Scene, resolution: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a scene, RGB, anti-aliased; the main object lies on top."""
    image = np.empty((resolution, resolution, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for thing in reversed(scene.things):
        row, column = divmod(thing.place, 3)
        centre = np.array([0.22 + 0.28 * column, 0.22 + 0.28 * row]) + thing.shift
        # Pixel k covers [k, k + 1), and OpenCV's point k is that pixel's centre.
        outlines = [
            np.round(((centre + SIZES[thing.size] * o) * resolution - 0.5) * 2**_POINTS)
            for o in SHAPES[thing.shape]
        ]
        outlines = [outline.astype(np.int32) for outline in outlines]
        cv2.fillPoly(image, outlines, COLOURS[thing.colour], cv2.LINE_AA, _POINTS)
    return image


def _noun(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


def _relation(place: int, other: int) -> str:
    """The direction from `other` to `place` in words."""
    (row, column), (other_row, other_column) = divmod(place, 3), divmod(other, 3)
    parts = []
    if row != other_row:
        parts.append("above" if row < other_row else "below")
    if column != other_column:
        parts.append("to the left of" if column < other_column else "to the right of")
    return " and ".join(parts)


def _shift(raw: int) -> tuple[float, float]:
    """A random shift by up to 0.03 of the side along both axes."""
    return ((raw & 0xFFFF) / 0xFFFF - 0.5) * 0.06, ((raw >> 16 & 0xFFFF) / 0xFFFF - 0.5) * 0.06


def _random(seed: int, stream: str, index: int, count: int) -> list[int]:
    """`count` random 64-bit integers; see `Draws`."""
    key = (seed & (2**64 - 1)) ^ (("train", "val", "noise", "order").index(stream) << 60)
    return Draws(key, 0xACED, index).raw(count)


@functools.lru_cache(maxsize=8)
def _main_order(seed: int, split: str) -> np.ndarray:
    raw = _random(seed, "order", _SPLITS[split], _MAINS)
    return np.argsort(np.array(raw, np.uint64), kind="stable")


def _words() -> tuple[str, ...]:
    parts = ["left right to the of above below and", *COLOURS, *BACKGROUNDS, *SIZES, *SHAPES]
    parts += ["on a background,", *PLACES, *VAGUE, *TEMPLATES, *_PREFIXES]
    return tuple(sorted(set(re.findall(r"\w+|,", " ".join(parts)))))


# Every word of captions, class names and templates: the vocabulary of the tokenizer.
WORDS = _words()
