"""Reads, decodes, measures and, where needed, re-encodes one image."""

import dataclasses
import io
import pathlib

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from aced.data import records
from aced.data.images.decode import FORMATS, decode
from aced.files import storage
from aced.prepare.captions import RejectedError
from aced.prepare.config import PrepareConfig
from aced.prepare.miniatures import miniature
from aced.prepare.perceptual_hash import perceptual_hash

_THUMBNAIL_QUALITY = 90
_MAX_JPEG_SIDE = 65_500


@dataclasses.dataclass(frozen=True)
class Checked:
    """An image that decodes: the bytes to store and its measurements."""

    data: bytes  # encoded
    anew: bool  # whether `data` was re-encoded here
    width: int  # of the upright picture, in pixels
    height: int
    look: bytes = b""  # perceptual hash; empty if not needed
    miniature: bytes = b""  # colours that verify equal hashes; empty if not needed
    thumbnail: bytes = b""  # encoded; empty without a thumbnail


def read_file(key: str, folder: str, follow_links: bool = False) -> bytes:
    """The bytes of the image file `key`, a path without "..", in a folder or an object store.

    With `follow_links` a symbolic link may lead out of the folder.

    Raises:
        RejectedError: the file is missing, too large, or behind a link out of the folder.
    """
    try:
        if storage.is_remote(folder):
            path = f"{folder.rstrip('/')}/{key}"
            if (file := storage.stat(path)) is None:
                raise RejectedError("missing_file", "no such file")
            size = file.size
        else:
            root = pathlib.Path(folder).resolve()
            path = str((root / key).resolve())
            if not follow_links and not pathlib.Path(path).is_relative_to(root):
                raise RejectedError(
                    "outside_link",
                    "not read without --follow_links, since it leads out of --images: the link "
                    f"{_link_out(root, key)} to {path}",
                )
            if not pathlib.Path(path).is_file():
                raise RejectedError("missing_file", f"no such file: {path}")
            size = pathlib.Path(path).stat().st_size
        if size > records.MAX_IMAGE_BYTES:
            raise RejectedError("too_large", f"{size} bytes")
        return storage.read(path, 0, size)
    except (OSError, RuntimeError) as error:  # unreadable; or a link to itself
        raise RejectedError("missing_file", str(error)) from error


def _link_out(root: pathlib.Path, key: str) -> pathlib.Path:
    """The first link on the path from `root` to `key` that leads out of `root`."""
    link = root
    for part in pathlib.PurePath(key).parts:
        link /= part
        if not link.resolve().is_relative_to(root):
            break
    return link


def check(data: bytes, config: PrepareConfig) -> Checked:
    """Decodes `data` in full, with the decoder of training.

    Raises:
        RejectedError: the image is too large or does not decode.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            if header.width * header.height > config.max_pixels:
                raise RejectedError("too_large", f"{header.width} x {header.height} pixels")
            form, is_transparent = header.format, header.has_transparency_data
        pixels = decode(data, config.max_pixels)
    except RejectedError:
        raise
    except UnidentifiedImageError as error:
        raise RejectedError("undecodable", f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise RejectedError("undecodable", f"{type(error).__name__}: {error}") from error
    anew = 0 < config.max_side < max(pixels.shape[:2]) or (config.max_side > 0 and is_transparent)
    if anew:
        pixels = _shrink(pixels, config.max_side)
        data = _encode(pixels, "JPEG" if form in ("JPEG", "MPO") else "PNG")
    look, small = b"", b""
    if config.near_duplicates >= 0:
        look, small = perceptual_hash(pixels), miniature(pixels)
    thumbnail = make_thumbnail(pixels, config.thumbnails) if config.thumbnails else None
    height, width = pixels.shape[:2]
    return Checked(data, anew, width, height, look, small, thumbnail or b"")


def make_thumbnail(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> bytes | None:
    """Returns the picture, given upright, with a shorter side of `side` pixels.

    Returns:
        A JPEG of quality 90 with colours in full resolution; None if the picture is no larger
        than that, or its thumbnail would be too long for a JPEG.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = round(width * side / short), round(height * side / short)
    if short <= side or max(size) > _MAX_JPEG_SIDE:
        return None
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return simplejpeg.encode_jpeg(small, quality=_THUMBNAIL_QUALITY, colorsubsampling="444")


def _shrink(pixels: UInt8[np.ndarray, "h w 3"], max_side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = pixels.shape[:2]
    if (longer := max(height, width)) <= max_side:
        return pixels
    size = tuple(max(1, round(side * max_side / longer)) for side in (width, height))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image)


def _encode(pixels: UInt8[np.ndarray, "h w 3"], form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, quality=95)
    return out.getvalue()
