"""statistics.html: a summary of a prepared data set, on one self-contained page."""

import html
from collections.abc import Callable, Sequence
from typing import Any

from aced.prepare.statistics import Sample
from aced.prepare.summary import REASONS
from aced.report.page import document, figure, table

_KEPT = {
    "images": "images",
    "captions": "captions",
    "stored_anew": "images encoded again, since they were large (--max_side) or transparent",
    "thumbnails": "images with a small copy (--thumbnails)",
}
_COUNTED = {  # of a split
    "images": "images",
    "captions": "captions",
    "noisy": "images labelled noisy",
    "image_bytes": "bytes of images",
}
_BAR = 320  # length of the longest bar, pixels
_TITLES = {
    "longer_side": "Longer side, pixels",
    "shorter_side": "Shorter side, pixels",
    "aspect": "Width : height",
    "caption_characters": "Length of captions, characters",
    "captions_per_image": "Captions of an image",
}


def page(summary: dict[str, Any], read: Callable[[Sample], bytes], max_pixels: int) -> str:
    """Returns the page of a summary, the content of summary.json.

    `read` returns the encoded bytes of a picture, which was checked with the bound `max_pixels`.
    """
    statistics = summary["statistics"]
    splits = statistics["splits"]
    names = [name for name in _COUNTED if any(name in counts for counts in splits.values())]
    counted = [
        [split, *(counts.get(name, "unknown") for name in names)]
        for split, counts in splits.items()
    ]
    left_out = [
        [reason, count, REASONS[reason]] for reason, count in statistics["rejected"].items()
    ]
    parts = [
        table("Kept", ["", "number"], [[text, statistics[name]] for name, text in _KEPT.items()]),
        table("Splits", ["split", *(_COUNTED[name] for name in names)], counted),
        table("Left out", ["reason", "number", ""], left_out),
    ]
    parts += [
        f"<h2>{_TITLES[name]}</h2>{_bars(bins)}" for name, bins in statistics["histograms"].items()
    ]
    # Missing where an earlier version counted.
    if by_kind := statistics.get("captions_by_kind"):
        parts.append(table("Captions by kind", ["kind", "captions"], by_kind.items()))
    parts.append(table("Captions of most images", ["images", "caption"], summary["captions"]))
    shown = [
        figure(read(picture), "; ".join(texts), max_pixels) for picture, texts in summary["samples"]
    ]
    parts.append("<h2>Some of the images kept</h2>" + "".join(shown))
    if summary["pairs"]:
        parts.append("<h2>Near-duplicates, the least similar first: kept, and left out</h2>")
        parts += [
            f'<div class="pair">{_named(other, "the earlier one", read, max_pixels)}'
            f"{_named(dropped, f'left out, {apart}', read, max_pixels)}</div>"
            for dropped, other, apart in summary["pairs"]
        ]
    return document("Prepared data set", parts)


def _named(
    image: Sequence[Any], role: str, read: Callable[[Sample], bytes], max_pixels: int
) -> str:
    picture, texts = image
    return figure(read(picture), f"{role}: {picture[0]}: {'; '.join(texts)}", max_pixels)


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
