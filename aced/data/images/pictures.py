"""From a record to the pixels that each model sees of its picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8

from aced.data.images.decode import DecodeError, Picture, decode, load, picture_size
from aced.data.images.fast_resize import resize_fast
from aced.data.images.transforms import ResizeConfig, resize

PictureName = Literal["image", "second"]  # of a record's pictures
Decoder = Literal["exact", "fast"]
Cut = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h2 w2 3"]]


class Look(NamedTuple):
    """What decides which pixels a model sees of a record."""

    resolution: int  # pixels a side
    resize: ResizeConfig  # how the picture gets it
    picture: PictureName = "image"


class Viewer:
    """What several models see of a record's pictures.

    What each sees depends on the picture, its own look and the settings alone, never on the other
    looks. What several need is decoded once.
    """

    def __init__(
        self, looks: Sequence[Look], decoder: Decoder, max_pixels: int, thumbnails: bool = False
    ):
        """Everything that records do not change is settled here.

        Args:
            looks: which picture, resolution and way to resize, of each model.
            decoder: "exact": the full picture, resized by Pillow's filters. "fast": a JPEG at 1/2,
                1/4 or 1/8 where that has enough pixels, resized by OpenCV (`fast_resize`). Pictures
                that are arrays are always resized exactly.
            max_pixels: larger pictures are refused.
            thumbnails: a look that needs no more pixels than the thumbnail has is given that.
                Second pictures have none.
        """
        self._count = len(looks)
        self._looks = {  # at each picture, with their places in the answer
            name: chosen
            for name in get_args(PictureName)
            if (chosen := [(i, look) for i, look in enumerate(looks) if look.picture == name])
        }
        self._fast, self._max_pixels, self._thumbnails = decoder == "fast", max_pixels, thumbnails

    def __call__(
        self, record: Mapping[str, Any], cut: Cut | None = None
    ) -> list[UInt8[np.ndarray, "r r 3"]]:
        """What each look sees.

        Args:
            record: `image`, encoded or as a uint8 array [h w 3], and maybe `thumbnail`, encoded, of
                the same picture, and `second`, another picture.
            cut: gives the part of the full picture that is resized instead, such as a random crop.

        Raises:
            DecodeError: the picture, or the thumbnail that is looked at, cannot be read, or there
                is no second one.
        """
        seen: list[Any] = [None] * self._count
        for name, looks in self._looks.items():
            if (image := record.get(name)) is None:
                raise DecodeError(f"it has no {name!r} picture, which a model looks at")
            if cut is not None:
                whole = decode(image, self._max_pixels) if isinstance(image, bytes) else image
                part = np.ascontiguousarray(cut(whole))
                picture = Picture(part, *map(float, part.shape[:2]))
                for i, look in looks:
                    seen[i] = self._resize(picture, look)
            elif not isinstance(image, bytes):
                for i, look in looks:
                    seen[i] = resize(image, look.resolution, look.resize)
            elif self._thumbnails and name == "image" and (small := record.get("thumbnail")):
                side = min(_thumbnail_size(small))
                self._decode(small, [item for item in looks if item[1].resolution <= side], seen)
                self._decode(image, [item for item in looks if item[1].resolution > side], seen)
            else:
                self._decode(image, looks, seen)
        return seen

    def _decode(self, data: bytes, looks: Sequence[tuple[int, Look]], seen: list[Any]) -> None:
        """Fills in what `looks` see of an encoded picture."""
        if looks:
            at_least = [look.resolution if self._fast else None for _, look in looks]
            pictures = load(data, self._max_pixels, at_least)
            for (i, look), picture in zip(looks, pictures, strict=True):
                seen[i] = self._resize(picture, look)

    def _resize(self, picture: Picture, look: Look) -> np.ndarray:
        if self._fast:
            return resize_fast(picture, look.resolution, look.resize)
        pixels = np.ascontiguousarray(picture.upright(picture.pixels))
        return resize(pixels, look.resolution, look.resize)


def _thumbnail_size(data: bytes) -> tuple[int, int]:
    try:
        return picture_size(data)
    except DecodeError as error:
        raise DecodeError(f"the thumbnail: {error}") from error
