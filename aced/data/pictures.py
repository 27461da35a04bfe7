"""From a record to the pixels that each model sees of its picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8

from aced.data.decode import DecodeError, Picture, decode, load, picture_size
from aced.data.fast_resize import resize_fast
from aced.data.transforms import ResizeConfig, resize

PictureName = Literal["image", "second"]  # of a record's pictures
Decoder = Literal["exact", "fast"]
Cut = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h2 w2 3"]]


class Look(NamedTuple):
    """What decides which pixels a model sees of a record."""

    resolution: int  # pixels a side
    resize: ResizeConfig  # how the picture gets it
    picture: PictureName = "image"


def see(
    record: Mapping[str, Any],
    looks: Sequence[Look],
    decoder: Decoder,
    max_pixels: int,
    thumbnails: bool = False,
    cut: Cut | None = None,
) -> list[UInt8[np.ndarray, "r r 3"]]:
    """Returns what each of `looks` sees of a record's pictures.

    It depends on the picture, that one look and the settings alone, never on the other looks. What
    several need is decoded once.

    Args:
        record: `image`, encoded or as a uint8 array [h w 3], and maybe `thumbnail`, encoded, of the
            same picture, and `second`, another picture.
        looks: which picture, resolution and way to resize, of each model.
        decoder: "exact": the full picture, resized by Pillow's filters. "fast": a JPEG at 1/2, 1/4
            or 1/8 where that has enough pixels, resized by OpenCV (`fast_resize`). Pictures that
            are arrays are always resized exactly.
        max_pixels: larger pictures are refused.
        thumbnails: a look that needs no more pixels than the thumbnail has is given that. Second
            pictures have none.
        cut: gives the part of the full picture that is resized instead, such as a random crop.

    Raises:
        DecodeError: the picture, or the thumbnail that is looked at, cannot be read, or there is no
            second one.
    """
    seen: dict[Look, np.ndarray] = {}
    for name in get_args(PictureName):
        if chosen := [look for look in looks if look.picture == name]:
            pixels = _see(record, chosen, decoder, max_pixels, thumbnails, cut)
            seen |= dict(zip(chosen, pixels, strict=True))
    return [seen[look] for look in looks]


def _see(
    record: Mapping[str, Any],
    looks: Sequence[Look],
    decoder: Decoder,
    max_pixels: int,
    thumbnails: bool,
    cut: Cut | None,
) -> list[UInt8[np.ndarray, "r r 3"]]:
    """The same of looks that are at one of the pictures."""
    name = looks[0].picture
    if (image := record.get(name)) is None:
        raise DecodeError(f"it has no {name!r} picture, which a model looks at")
    if cut is not None:
        whole = decode(image, max_pixels) if isinstance(image, bytes) else image
        part = np.ascontiguousarray(cut(whole))
        picture = Picture(part, *map(float, part.shape[:2]))
        return [_resize(picture, look, decoder) for look in looks]
    if not isinstance(image, bytes):
        return [resize(image, look.resolution, look.resize) for look in looks]
    small = record.get("thumbnail") if thumbnails and name == "image" else None
    side = min(_thumbnail_size(small)) if small is not None else 0
    seen: dict[int, np.ndarray] = {}
    for data, chosen in (
        (small, [i for i, look in enumerate(looks) if look.resolution <= side]),
        (image, [i for i, look in enumerate(looks) if look.resolution > side]),
    ):
        if chosen:
            at_least = [looks[i].resolution if decoder == "fast" else None for i in chosen]
            pictures = load(data, max_pixels, at_least)
            for i, picture in zip(chosen, pictures, strict=True):
                seen[i] = _resize(picture, looks[i], decoder)
    return [seen[i] for i in range(len(looks))]


def _resize(picture: Picture, look: Look, decoder: Decoder) -> np.ndarray:
    if decoder == "fast":
        return resize_fast(picture, look.resolution, look.resize)
    pixels = np.ascontiguousarray(picture.upright(picture.pixels))
    return resize(pixels, look.resolution, look.resize)


def _thumbnail_size(data: bytes) -> tuple[int, int]:
    try:
        return picture_size(data)
    except DecodeError as error:
        raise DecodeError(f"the thumbnail: {error}") from error
