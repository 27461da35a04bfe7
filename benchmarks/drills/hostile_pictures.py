"""Files that are called pictures; some of them are."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image


class Picture(NamedTuple):
    """A file, and whether it may be kept as it is; if not, it has to be left out."""

    data: bytes
    is_whole: bool


def _image(rng: random.Random, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def _saved(image: Image.Image, form: str, **settings) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **settings)
    return out.getvalue()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), name, data]
        parts.append(struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def _cut(form: str) -> Callable[[random.Random], Picture]:
    def cut(rng: random.Random) -> Picture:
        data = _saved(_image(rng), form)
        return Picture(data[: rng.randrange(1, len(data) * 9 // 10)], False)

    return cut


def _whole(form: str, mode: str, **settings) -> Callable[[random.Random], Picture]:
    return lambda rng: Picture(_saved(_image(rng, mode), form, **settings), True)


def _fixed(data: bytes, is_whole: bool = False) -> Callable[[random.Random], Picture]:
    return lambda rng: Picture(data, is_whole)


def _flipped(form: str) -> Callable[[random.Random], Picture]:
    def flipped(rng: random.Random) -> Picture:
        data = bytearray(_saved(_image(rng), form))
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return Picture(bytes(data), True)  # it may still be a picture

    return flipped


def _exif(rng: random.Random) -> Picture:
    noise = rng.randbytes(200)
    return Picture(_saved(_image(rng), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + noise), True)


def _orientation(rng: random.Random) -> Picture:
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 3, 6, 9, 65535))
    return Picture(_saved(_image(rng), "JPEG", exif=exif), True)


def _sixteen_bits(rng: random.Random) -> Picture:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 65536, (30, 40))
    return Picture(_saved(Image.fromarray(pixels.astype(np.uint16)), "PNG"), True)


def _frames(form: str) -> Callable[[random.Random], Picture]:
    def frames(rng: random.Random) -> Picture:
        more = [_image(rng) for _ in range(3)]
        return Picture(_saved(_image(rng), form, save_all=True, append_images=more), True)

    return frames


_BOMB = zlib.compress(bytes(200_000_000), 9)
PICTURES: dict[str, Callable[[random.Random], Picture]] = {
    "JPEG, cut off": _cut("JPEG"),
    "PNG, cut off": _cut("PNG"),
    "WebP, cut off": _cut("WEBP"),
    "GIF, cut off": _cut("GIF"),
    "JPEG with flipped bits": _flipped("JPEG"),
    "PNG with flipped bits": _flipped("PNG"),
    "WebP with flipped bits": _flipped("WEBP"),
    "TIFF with flipped bits": _flipped("TIFF"),
    "BMP with flipped bits": _flipped("BMP"),
    "no bytes": _fixed(b""),
    "a page of HTML": _fixed(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "an SVG": _fixed(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "PostScript": _fixed(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"),
    "a pickle": _fixed(b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    "random bytes": lambda rng: Picture(rng.randbytes(3000), False),
    "a PNG of 60,000 by 60,000": _fixed(_png(60_000, 60_000, (b"IDAT", zlib.compress(b"")))),
    "a PNG of 0 by 9": _fixed(_png(0, 9, (b"IDAT", zlib.compress(b"")))),
    "a PNG without pixels": _fixed(_png(30, 30)),
    "a PNG with 200 MB in a text": _fixed(
        _png(30, 30, (b"zTXt", b"a\0\0" + _BOMB), (b"IDAT", zlib.compress(bytes(30 * 91)))), True
    ),
    "a PNG with too many pixels": _fixed(_png(30, 30, (b"IDAT", _BOMB)), True),
    "JPEG, CMYK": _whole("JPEG", "CMYK"),
    "JPEG, grey": _whole("JPEG", "L"),
    "JPEG, progressive": _whole("JPEG", "RGB", progressive=True),
    "PNG, one bit": _whole("PNG", "1"),
    "PNG, palette": _whole("PNG", "P"),
    "PNG, transparent grey": _whole("PNG", "LA"),
    "PNG, 16 bits": _sixteen_bits,
    "TIFF, floats": _whole("TIFF", "F"),
    "TIFF, LAB": _whole("TIFF", "LAB"),
    "BMP": _whole("BMP", "RGB"),
    "GIF of four pictures": _frames("GIF"),
    "TIFF of four pictures": _frames("TIFF"),
    "EXIF of random bytes": _exif,
    "a strange orientation": _orientation,
    "an ICC profile of random bytes": lambda rng: Picture(
        _saved(_image(rng), "JPEG", icc_profile=rng.randbytes(500)), True
    ),
    "a PNG with more behind it": lambda rng: Picture(
        _saved(_image(rng), "PNG") + rng.randbytes(999), True
    ),
    "one pixel": lambda rng: Picture(_saved(_image(rng, size=(1, 1)), "PNG"), True),
    "1 by 20,000": lambda rng: Picture(_saved(_image(rng, size=(1, 20_000)), "PNG"), True),
}
