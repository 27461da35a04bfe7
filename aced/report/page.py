"""Self-contained HTML pages, with all text escaped."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from aced.data.images.decode import DecodeError, decode

_SIDE = 128  # of the pictures shown, pixels
_LONGEST = 200  # characters of a text from the data
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: max-content; }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top; max-width: 24rem; }
td.n { text-align: right; } figure { display: inline-block; width: 9rem; margin: .5rem;
vertical-align: top; overflow-wrap: anywhere; font-size: 12px; }
.pair { display: inline-block; border: 1px solid #ccc; margin: .3rem; }
figure img { min-width: 4rem; image-rendering: pixelated; }
.marked img { outline: 3px solid #c33; } .curve { max-width: 100%; }
.legend { position: sticky; top: 0; background: #fff; max-height: 5rem; overflow-y: auto; }
.legend span { display: inline-block; margin-right: 1rem; } h3 { margin-bottom: 0; }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .5rem; }
figure { width: 7rem; margin: .3rem; } }
"""


def document(title: str, parts: Iterable[str], refresh: int = 0) -> str:
    """A page of HTML parts.

    Args:
        title: of the page.
        parts: what is on it.
        refresh: seconds after which a browser loads the page again; 0: never.
    """
    # Forbids loading and scripts, in case an escape is ever missing.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + (f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "")
        + f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    return text.encode("utf-8", "replace").decode()  # replaces lone surrogates


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A heading and a table, in a box that scrolls if the page is narrow.

    Integers are right-aligned.
    """
    if not (rows := list(rows)):
        return f"<h2>{html.escape(title)}</h2><p>Nothing.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    )


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{escape(value)}</td>"


def legend(colours: Mapping[str, str]) -> str:
    """Labels with their colours, which stay in view."""
    items = (
        f'<span><b style="color:{colour}">■</b> {escape(label)}</span>'
        for label, colour in colours.items()
    )
    return f'<div class="legend">{"".join(items)}</div>'


def panel(title: str, note: str, images: Iterable[bytes]) -> str:
    """A heading, a note and SVG images, which are below each other if the page is narrow."""
    shown = "".join(
        f'<img class="curve" alt="{escape(title)}" src="{data_url(image, "image/svg+xml")}">'
        for image in images
    )
    return f"<h3>{escape(title)}</h3>{note and f'<p>{escape(note)}</p>'}<div>{shown}</div>"


def escape(text: str) -> str:
    """Shortens and escapes a text."""
    return html.escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def figure(
    picture: bytes | UInt8[np.ndarray, "h w 3"],
    caption: str,
    max_pixels: int,
    *,
    marked: bool = False,
) -> str:
    """A small image with a caption, or an error message if it cannot be decoded.

    Args:
        picture: encoded, or its pixels.
        caption: any text; escaped here.
        max_pixels: larger encoded images are not decoded.
        marked: whether to frame the image in red.
    """
    try:
        pixels = picture
        if isinstance(picture, bytes):
            pixels = decode(picture, max_pixels, at_least=_SIDE)
    except DecodeError as error:
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
    """A file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
