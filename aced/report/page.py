"""Pages of HTML that hold all they show, load nothing, and take no text for their own language."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from aced.data.images.decode import DecodeError, decode

_SIDE = 128  # of the pictures shown, pixels
_LONGEST = 200  # characters of a text of the data
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
td.n { text-align: right; } figure { display: inline-block; width: 9rem; margin: .5rem;
vertical-align: top; overflow-wrap: anywhere; font-size: 12px; } svg text { font-size: 12px; }
.pair { display: inline-block; border: 1px solid #ccc; margin: .3rem; }
figure img { min-width: 4rem; image-rendering: pixelated; }
.marked img { outline: 3px solid #c33; } .curve { max-width: 100%; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The page, of parts that are HTML."""
    # Nothing in it may load or run anything, should an escape be missing some day.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    return text.encode("utf-8", "replace").decode()  # without the halves of broken characters


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A heading and a table; whole numbers are set to the right."""
    if not (rows := list(rows)):
        return f"<h2>{html.escape(title)}</h2><p>Nothing.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{escape(value)}</td>"


def escape(text: str) -> str:
    """Text of the data set: shortened, and no part of the page's language."""
    return html.escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def figure(
    picture: bytes | UInt8[np.ndarray, "h w 3"],
    caption: str,
    max_pixels: int,
    *,
    marked: bool = False,
) -> str:
    """A small picture and what is said of it, or why it cannot be shown.

    Args:
        picture: encoded, or its pixels.
        caption: in any words.
        max_pixels: larger encoded pictures are not decoded.
        marked: framed in red.
    """
    try:
        pixels = picture
        if isinstance(picture, bytes):
            pixels = decode(picture, max_pixels, at_least=_SIDE)
    except DecodeError as error:  # the copy is damaged; the shards were checked before
        return f"<figure>{escape(str(error))}</figure>"
    small = Image.fromarray(pixels)
    small.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return (
        f'<figure{" class=marked" if marked else ""}><img alt="" src="'
        f'{data_url(out.getvalue(), "image/jpeg")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def data_url(data: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
