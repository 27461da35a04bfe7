"""From a record to the pixels that each model sees of its picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from aced.data.decode import DecodeError, Picture, decode, load, picture_size
from aced.data.fast_resize import resize_fast
from aced.data.transforms import ResizeConfig, resize

Look = tuple[int, ResizeConfig]  # resolution, and how a picture gets it
Decoder = Literal["exact", "fast"]
Cut = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h2 w2 3"]]


def see(
    record: Mapping[str, Any],
    looks: Sequence[Look],
    decoder: Decoder,
    max_pixels: int,
    thumbnails: bool = False,
    cut: Cut | None = None,
) -> list[UInt8[np.ndarray, "r r 3"]]:
    """Returns what each of `looks` sees of a record's picture.

    It depends on the picture, that one look and the settings alone, never on the other looks. What
    several need is decoded once.

    Args:
        record: `image`, encoded or as a uint8 array [h w 3], and maybe `thumbnail`, encoded.
        looks: resolution and way to resize, of each model.
        decoder: "exact": the full picture, resized by Pillow's filters. "fast": a JPEG at 1/2, 1/4
            or 1/8 where that has enough pixels, resized by OpenCV (`fast_resize`). Pictures that
            are arrays are always resized exactly.
        max_pixels: larger pictures are refused.
        thumbnails: a look that needs no more pixels than the thumbnail has is given that.
        cut: gives the part of the full picture that is resized instead, such as a random crop.

    Raises:
        DecodeError: the picture, or the thumbnail that is looked at, cannot be read.
    """
    image = record["image"]
    if cut is not None:
        whole = decode(image, max_pixels) if isinstance(image, bytes) else image
        part = np.ascontiguousarray(cut(whole))
        picture = Picture(part, *map(float, part.shape[:2]))
        return [_resize(picture, look, decoder) for look in looks]
    if not isinstance(image, bytes):
        return [resize(image, *look) for look in looks]
    small = record.get("thumbnail") if thumbnails else None
    side = min(_thumbnail_size(small)) if small is not None else 0
    seen: dict[int, np.ndarray] = {}
    for data, chosen in (
        (small, [i for i, (resolution, _) in enumerate(looks) if resolution <= side]),
        (image, [i for i, (resolution, _) in enumerate(looks) if resolution > side]),
    ):
        if chosen:
            at_least = [looks[i][0] if decoder == "fast" else None for i in chosen]
            pictures = load(data, max_pixels, at_least)
            for i, picture in zip(chosen, pictures, strict=True):
                seen[i] = _resize(picture, looks[i], decoder)
    return [seen[i] for i in range(len(looks))]


def _resize(picture: Picture, look: Look, decoder: Decoder) -> np.ndarray:
    if decoder == "fast":
        return resize_fast(picture, *look)
    return resize(np.ascontiguousarray(picture.upright(picture.pixels)), *look)


def _thumbnail_size(data: bytes) -> tuple[int, int]:
    try:
        return picture_size(data)
    except DecodeError as error:
        raise DecodeError(f"the thumbnail: {error}") from error
