"""Converts a record's pictures to the pixels that each model sees."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, UInt8

from aced.data.images.decode import DecodeError, Picture, decode, load, picture_size
from aced.data.images.fast_resize import resize_fast
from aced.data.images.transforms import ResizeConfig, resize

PictureName = Literal["image", "second"]  # of a record's pictures
Decoder = Literal["exact", "fast"]
Cut = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h2 w2 3"]]
Cuts = Callable[[int], Sequence[Cut]]  # the parts of the picture of an example to use
Transform = Callable[[UInt8[np.ndarray, "h w 3"]], Float[np.ndarray, "3 r s"]]
WHOLE = sys.maxsize  # resolution of a look at the full picture, without thumbnail or scaled JPEG


class Look(NamedTuple):
    """The settings that determine the pixels that a model sees of a record."""

    resolution: int  # pixels a side
    resize: ResizeConfig  # how the picture is resized to it
    picture: PictureName = "image"
    transform: Transform | None = None  # another library's, of the full picture, in place of resize


class Viewer:
    """Computes the pixels that several models see of a record's pictures.

    The pixels of a look do not depend on the other looks. Each size is decoded once.
    """

    def __init__(
        self, looks: Sequence[Look], decoder: Decoder, max_pixels: int, thumbnails: bool = False
    ):
        """Groups the looks by picture.

        Args:
            looks: picture, resolution and resizing of each model.
            decoder: "exact": the full picture, resized by Pillow's filters. "fast": a JPEG at 1/2,
                1/4 or 1/8 where that has enough pixels, resized by OpenCV (`fast_resize`). Pictures
                that are arrays are always resized exactly.
            max_pixels: larger pictures are refused.
            thumbnails: whether looks use the thumbnail if it has enough pixels. Second pictures
                have no thumbnails.
        """
        self._count = len(looks)
        self._looks = {  # by picture, with their index in the result
            name: chosen
            for name in get_args(PictureName)
            if (chosen := [(i, look) for i, look in enumerate(looks) if look.picture == name])
        }
        self._fast, self._max_pixels, self._thumbnails = decoder == "fast", max_pixels, thumbnails

    def __call__(
        self, record: Mapping[str, Any], cuts: Sequence[Cut] = ()
    ) -> list[UInt8[np.ndarray, "r r 3"] | Float[np.ndarray, "3 r s"]]:
        """The pixels of each look, or what its transform makes of them, one cut after another.

        Args:
            record: `image`, encoded or as a uint8 array [h w 3]; optionally `thumbnail`, encoded,
                and `second`, another picture.
            cuts: each returns a part of the full picture, such as a random crop. Empty: the
                pictures are looked at as they are.

        Raises:
            DecodeError: a picture that is needed is missing or cannot be read.
        """
        seen: list[Any] = [None] * self._count * max(1, len(cuts))
        for name, looks in self._looks.items():
            if (image := record.get(name)) is None:
                raise DecodeError(f"it has no {name!r} picture, which a model needs")
            if cuts:
                whole = decode(image, self._max_pixels) if isinstance(image, bytes) else image
                for number, cut in enumerate(cuts):
                    part = np.ascontiguousarray(cut(whole))
                    picture = Picture(part, *map(float, part.shape[:2]))
                    for i, look in looks:
                        seen[number * self._count + i] = self._resize(picture, look)
            elif not isinstance(image, bytes):
                for i, look in looks:
                    seen[i] = _exact(image, look)
            elif self._thumbnails and name == "image" and (small := record.get("thumbnail")):
                side = min(_thumbnail_size(small))
                self._decode(small, [item for item in looks if item[1].resolution <= side], seen)
                self._decode(image, [item for item in looks if item[1].resolution > side], seen)
            else:
                self._decode(image, looks, seen)
        return seen

    def _decode(self, data: bytes, looks: Sequence[tuple[int, Look]], seen: list[Any]) -> None:
        """Fills in the pixels of `looks` at an encoded picture."""
        if looks:
            at_least = [look.resolution if self._fast else None for _, look in looks]
            pictures = load(data, self._max_pixels, at_least)
            for (i, look), picture in zip(looks, pictures, strict=True):
                seen[i] = self._resize(picture, look)

    def _resize(self, picture: Picture, look: Look) -> np.ndarray:
        if self._fast and look.transform is None:
            return resize_fast(picture, look.resolution, look.resize)
        return _exact(np.ascontiguousarray(picture.upright(picture.pixels)), look)


def _exact(pixels: UInt8[np.ndarray, "h w 3"], look: Look) -> np.ndarray:
    if look.transform is not None:
        return look.transform(pixels)
    return resize(pixels, look.resolution, look.resize)


def _thumbnail_size(data: bytes) -> tuple[int, int]:
    try:
        return picture_size(data)
    except DecodeError as error:
        raise DecodeError(f"the thumbnail: {error}") from error
