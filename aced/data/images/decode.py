"""Encoded pictures to uint8 RGB arrays: formats, limits, orientation, transparency.

JPEG is decoded by libjpeg-turbo (simplejpeg), which gives Pillow's pixels bit for bit, and other
formats by Pillow. (OpenCV reads PNG and WebP 10 to 20 % faster, but treats palettes, transparency
and 16 bits differently.) Both release the GIL while they decode.
"""

import contextlib
import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit; the result has 256 MB
# Pillow's other readers start programs (EPS), read other files, or are hardly used.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Limits are set per call here; Pillow's own limit is process-wide.
Image.MAX_IMAGE_PIXELS = None
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_AT_ONCE = 1 << 18  # pixels that are converted to RGB at once
# Factors by which JPEGs are scaled down. libjpeg-turbo has more, but without SIMD code: those take
# as long as the full picture.
_REDUCTIONS = (8, 4, 2, 1)

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # JPEG: baseline, extended and progressive; others are rare
_SCAN = 0xDA
_NOTE = 0xE1  # APP1: EXIF or XMP
_ALONE = frozenset((0x01, 0xFF, *range(0xD0, 0xDA)))  # markers without a segment, and padding
_EXAMINED = _FRAMES | _ALONE | {_SCAN, _NOTE}  # all other segments are skipped
_segment = struct.Struct(">BBH").unpack_from  # 0xFF, the marker, the segment's length
_frame = struct.Struct(">BHHB").unpack_from  # bits, height, width, components


class DecodeError(ValueError):
    """A picture that cannot be read; the message gives the reason."""


class Picture(NamedTuple):
    """A decoded picture in its stored orientation."""

    pixels: UInt8[np.ndarray, "h w 3"]
    # Size in pixels, fractional for a scaled picture with a partial last row or column.
    height: float
    width: float
    orientation: int = 1  # EXIF's

    def upright(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """A view of `pixels`, given in the stored orientation, rotated and mirrored upright."""
        return _UPRIGHT[self.orientation](pixels)


# The transformation from the stored to the upright picture by EXIF orientation.
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

    Applies the EXIF orientation, composites transparency on white, scales 16-bit greys to 8 bits
    and takes the first frame of an animation. Pictures of more than `max_pixels` are refused before
    decoding, since a small file can expand to gigabytes. With `at_least` a JPEG is scaled down by
    8, 4, 2 or 1, as far as both sides keep at least this many pixels (see `load`).

    The peak memory is 8 bytes per pixel beside `data` and 8 MB, so below 0.8 GB for `MAX_PIXELS`; a
    progressive JPEG takes up to 9 (CMYK 13), a TIFF up to 12, a WebP 17.

    Raises:
        DecodeError: the picture is broken, of another format, or too large.
    """
    (picture,) = load(data, max_pixels, [at_least])
    return np.ascontiguousarray(picture.upright(picture.pixels))


def load(data: bytes, max_pixels: int, at_least: Sequence[int | None]) -> list[Picture]:
    """Like `decode`, at several sizes, in the stored orientation.

    A JPEG scaled down by k is the full one averaged over k x k pixels, except that subsampled
    colours are not smoothed. libjpeg's fast approximations are not used: with SIMD code its fast
    DCT overflows where saturated colours meet (half of the pixels of such a picture are then far
    off, on some machines), and together they save only one percent (benchmarks/input.py).

    Returns:
        One picture for each of `at_least`; the same object for equal sizes, which are decoded once.

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
        return [_load_opened(picture)] * len(at_least)


def from_pillow(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a picture of Pillow's to RGB, upright, as `decode` does a file of the same content.

    Raises:
        DecodeError: its pixels are floating-point numbers.
    """
    loaded = _load_opened(picture)
    return np.ascontiguousarray(loaded.upright(loaded.pixels))


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright picture, from its header alone.

    Takes a few microseconds for most JPEGs, some 20 for other pictures.

    Raises:
        DecodeError: the header is broken, or of another format.
    """
    header = read_jpeg_header(data)
    if header is not None and not header.has_note:
        return header.width, header.height
    with _opened(data) as picture:
        width, height = picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


class JpegHeader(NamedTuple):
    """Header of an 8-bit JPEG, grey or in colours that libjpeg-turbo converts to RGB."""

    width: int  # as stored
    height: int
    has_note: bool  # has an APP1 segment, which may hold an orientation


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Returns the header of an ordinary JPEG, 10 times as fast as Pillow; None for other files."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame, has_note, position = None, False, 2
    end = len(data) - 3
    while position < end:
        prefix, marker, length = _segment(data, position)
        if prefix != 0xFF:
            return None
        if marker in _EXAMINED:
            if marker == _SCAN:
                return frame and JpegHeader(*frame, has_note)
            if marker == _NOTE:
                has_note = True
            elif marker in _ALONE or frame is not None or position + 10 > len(data):
                return None
            else:
                bits, height, width, components = _frame(data, position + 4)
                if bits != 8 or components not in (1, 3) or not height or not width:
                    return None
                frame = width, height
        position += 2 + length
    return None


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Opens a picture with Pillow; every error becomes a DecodeError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            yield picture
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # its message has the address of an object
        raise DecodeError(f"not a readable picture: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises nearly anything for broken files
        raise DecodeError(f"not a readable picture: {type(error).__name__}: {error}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels are more than data.max_pixels = {max_pixels}")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; Pillow applies that of a TIFF itself."""
    if picture.format == "TIFF":
        return 1
    try:
        # PNG's own method would decode the whole picture to look for a later chunk.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # the picture may be fine despite broken EXIF data
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _reduction(header: JpegHeader, at_least: int | None) -> int:
    """The largest factor that keeps at least `at_least` pixels of the shorter side."""
    if at_least is None:
        return 1
    short = min(header.width, header.height)
    for k in _REDUCTIONS:
        if -(-short // k) >= at_least:
            return k
    return 1


def _load_jpeg(data: bytes, header: JpegHeader, reduction: int) -> Picture | None:
    """Decodes with libjpeg-turbo; None where it refuses and Pillow is tried.

    It refuses odd subsamplings and recoverable errors, such as extra bytes between two segments.
    Pillow accepts those, but no truncated file.
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


def _load_opened(picture: Image.Image) -> Picture:
    picture.load()
    orientation = _orientation(picture)  # after `load`, which reads PNG's late chunks
    pixels = _to_rgb(picture)
    return Picture(pixels, *map(float, pixels.shape[:2]), orientation)


def _to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Converts part by part, since a conversion takes several times the memory of its result."""
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
