"""Encoded pictures to uint8 RGB arrays: formats, limits, orientation, transparency.

JPEG goes through libjpeg-turbo (simplejpeg) and gives Pillow's pixels bit for bit, the other
formats through Pillow. (OpenCV reads PNG and WebP 10 to 20 % faster, but treats palettes,
transparency and 16 bits by rules of its own.) Both leave Python's lock while they decode.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image

from aced.data.images.jpeg_header import JpegHeader, read_jpeg_header

MAX_PIXELS = 89_478_485  # Pillow's own limit; the result has 256 MB
# Pillow's other readers start programs (EPS), read other files, or are hardly used.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Limits are set per call here; Pillow's own warns through the process-wide filters.
Image.MAX_IMAGE_PIXELS = None
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_AT_ONCE = 1 << 18  # pixels that are converted to RGB at once
# By what JPEGs are scaled down. libjpeg-turbo has more scales, but no SIMD code for them: they take
# as long as the full picture.
_REDUCTIONS = (8, 4, 2, 1)


class DecodeError(ValueError):
    """A picture that cannot be read; the message says why."""


class Picture(NamedTuple):
    """A decoded picture as it is stored, which may be lying on its side."""

    pixels: UInt8[np.ndarray, "h w 3"]
    # What `pixels` cover, in pixels. A scaled picture's last row and column may be partial ones.
    height: float
    width: float
    orientation: int = 1  # EXIF's

    def upright(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """A view of `pixels`, which lie as the stored ones do, turned and mirrored to be seen."""
        return _UPRIGHT[self.orientation](pixels)


# Which transformation shows the stored picture upright, from the EXIF standard.
_UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x[:, ::-1].transpose(1, 0, 2),
}


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a picture of one of `FORMATS` to RGB, upright.

    The EXIF orientation is applied, transparency is laid on white, 16-bit greys are scaled to 8,
    and of an animation the first frame is shown.

    At its peak a picture takes 8 bytes a pixel, beside `data` and 8 MB: Pillow's own has up to 4,
    the result 3. A progressive JPEG has up to 9 before that, of CMYK 13; a TIFF up to 12, a WebP
    17. A picture of `MAX_PIXELS` thus stays below 0.8 GB, but for these.

    Args:
        data: the encoded picture.
        max_pixels: refuse larger pictures before decoding them: a small file can unfold to
            gigabytes.
        at_least: None: the full size. Else a JPEG comes out 8, 4, 2 or 1 times smaller: as much as
            leaves both sides at least so many pixels (see `load`).

    Raises:
        DecodeError: the picture is broken, of another format, or too large.
    """
    (picture,) = load(data, max_pixels, [at_least])
    return np.ascontiguousarray(picture.upright(picture.pixels))


def load(data: bytes, max_pixels: int, at_least: Sequence[int | None]) -> list[Picture]:
    """Like `decode`, at several sizes; the pictures are not turned yet and say what they cover.

    A JPEG that comes out k times smaller is the full one's averages over k x k pixels, but for the
    colours of a subsampled one, which are not smoothed on the way. libjpeg's fast approximations
    are not used: with SIMD code its fast DCT overflows where saturated colours meet (half of the
    pixels of such a picture are then far off, on some machines), and all of them together save a
    percent (benchmarks/input.py).

    Returns:
        One picture for each of `at_least`, which depends on that one alone; the same object where
        they are alike, so that nothing is decoded twice.

    Raises:
        DecodeError: see `decode`.
    """
    if (header := read_jpeg_header(data)) is not None:
        _check_size(header.width, header.height, max_pixels)
        reductions = [_reduction(header, side) for side in at_least]
        loaded = {k: _load_jpeg(data, header, k) for k in set(reductions)}
        if None not in loaded.values():
            return [loaded[k] for k in reductions]
    with _opened(data) as picture:
        _check_size(*picture.size, max_pixels)
        picture.load()
        orientation = _orientation(picture)  # now that PNG's late chunks are read
        pixels = _to_rgb(picture)
        return [Picture(pixels, *map(float, pixels.shape[:2]), orientation)] * len(at_least)


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture as it is seen, from its header alone.

    The EXIF orientation is considered. What follows the header may still be broken. Takes a few
    microseconds for most JPEGs, some 20 for other pictures.

    Raises:
        DecodeError: the header is broken, or of another format.
    """
    header = read_jpeg_header(data)
    if header is not None and not header.has_note:
        return header.width, header.height
    with _opened(data) as picture:
        width, height = picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture with its header read; every error of its reader is a DecodeError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers let out whatever a broken file provokes
        raise DecodeError(f"not a readable picture: {type(error).__name__}: {error}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels are more than data.max_pixels = {max_pixels}")


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation of what Pillow shows: it turns TIFF by itself, and nothing else."""
    if picture.format == "TIFF":
        return 1
    try:
        # Not PNG's own method: it decodes the whole picture to look for a chunk behind it.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken note about a picture doesn't make the picture a broken one
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _reduction(header: JpegHeader, at_least: int | None) -> int:
    """The largest one that leaves the shorter side, rounded up, long enough."""
    if at_least is None:
        return 1
    short = min(header.width, header.height)
    for k in _REDUCTIONS:
        if -(-short // k) >= at_least:
            return k
    return 1


def _load_jpeg(data: bytes, header: JpegHeader, reduction: int) -> Picture | None:
    """The picture by libjpeg-turbo; None where it refuses, and Pillow has to judge.

    It refuses odd subsamplings, and also what the JPEG library calls recoverable, like bytes too
    many between two segments. Pillow takes those, but no truncated file.
    """
    rows, columns = -(-header.height // reduction), -(-header.width // reduction)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=rows, min_width=columns)
    except ValueError:
        return None
    if pixels.shape != (rows, columns, 3):
        return None
    height, width = header.height / reduction, header.width / reduction
    if not header.has_note:
        return Picture(pixels, height, width)
    with _opened(data) as picture:
        return Picture(pixels, height, width, _orientation(picture))


def _to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture, part by part, since a conversion takes several times its memory."""
    if picture.mode == "F":
        raise DecodeError("floating-point pictures have no defined range; store 8 or 16 bits")
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    columns = min(width, _AT_ONCE)
    rows = _AT_ONCE // columns
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        part = pixels[top : top + rows, left : left + columns]
        box = left, top, left + part.shape[1], top + part.shape[0]
        part[:] = _part_to_rgb(picture.crop(box))
    return pixels


def _part_to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w #3"]:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65_535)
        return np.round(grey / 257).astype(np.uint8)[..., None]
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))
