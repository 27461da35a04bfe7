"""statistics.html: what came out of a preparation, on one page that loads nothing."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image

from aced.data.decode import DecodeError, decode
from aced.preparation.statistics import Sample

_SIDE = 128  # of the pictures shown, pixels
_BAR = 320  # of the longest bar, pixels
_TITLES = {
    "longer_side": "Longer side, pixels",
    "shorter_side": "Shorter side, pixels",
    "aspect": "Width : height",
    "caption_characters": "Length of captions, characters",
    "captions_per_image": "Captions of an image",
}
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
td.n { text-align: right; } figure { display: inline-block; width: 9rem; margin: .5rem;
vertical-align: top; overflow-wrap: anywhere; font-size: 12px; } svg text { font-size: 12px; }
.pair { display: inline-block; border: 1px solid #ccc; margin: .3rem; }
"""


def page(summary: dict[str, Any], read: Callable[[Sample], bytes], max_pixels: int) -> str:
    """Returns the page.

    Args:
        summary: what `graph` wrote as summary.json.
        read: gives a picture's encoded bytes.
        max_pixels: as the pictures were checked with.
    """
    statistics = summary["statistics"]
    names = ("images", "captions", "noisy", "image_bytes")
    splits = [[part, *(of[name] for name in names)] for part, of in statistics["splits"].items()]
    totals = [
        [name, statistics[name]] for name in ("images", "captions", "stored_anew", "thumbnails")
    ]
    parts = [
        _table("Kept", ["", "number"], totals),
        _table("Splits", ["split", *names], splits),
        _table("Left out", ["reason", "number"], statistics["rejected"].items()),
    ]
    parts += [
        f"<h2>{_TITLES[name]}</h2>{_bars(bins)}" for name, bins in statistics["histograms"].items()
    ]
    parts.append(_table("Captions of most images", ["images", "caption"], summary["captions"]))
    shown = [
        _figure(read(picture), "; ".join(texts), max_pixels)
        for picture, texts in summary["samples"]
    ]
    parts.append("<h2>Some of the images kept</h2>" + "".join(shown))
    if summary["pairs"]:
        pairs = [
            f'<div class="pair">{_figure(read(mine), f"left out: {mine[0]}", max_pixels)}'
            f"{_figure(read(other), f'{bits} bits from {other[0]}', max_pixels)}</div>"
            for mine, other, bits in summary["pairs"]
        ]
        parts.append("<h2>Some of the near-duplicates</h2>" + "".join(pairs))
    # Nothing in it may load or run anything, should an escape be missing some day.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Prepared data set</title><style>{_STYLE}</style></head><body>"
        "<h1>Prepared data set</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(title: str, columns: list[str], rows: Iterable[Sequence[Any]]) -> str:
    if not (rows := list(rows)):
        return f"<h2>{html.escape(title)}</h2><p>Nothing.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{_escape(value)}</td>"


def _escape(text: str) -> str:
    """Text of the data set: shortened, and no part of the page's language."""
    return html.escape(text if len(text) <= 200 else f"{text[:199]}…")


def _bars(bins: dict[str, int]) -> str:
    most = max(bins.values())
    rows = []
    for i, (name, count) in enumerate(bins.items()):
        y = 20 * i
        width = max(1, round(_BAR * count / most))
        rows.append(
            f'<text x="120" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="128" y="{y + 3}" width="{width}" height="14" fill="#48c"/>'
            f'<text x="{134 + width}" y="{y + 14}">{count:,}</text>'
        )
    return f'<svg width="{_BAR + 240}" height="{20 * len(bins)}">{"".join(rows)}</svg>'


def _figure(data: bytes, caption: str, max_pixels: int) -> str:
    try:
        picture = Image.fromarray(decode(data, max_pixels, at_least=_SIDE))
    except DecodeError as error:  # the copy is damaged; the shards were checked before
        return f"<figure>{_escape(str(error))}</figure>"
    picture.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    code = base64.b64encode(out.getvalue()).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{code}">'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )
