"""An icon of Iconify's format as a picture: its colours, its ground, its margin."""

import hashlib
import io
import itertools
from typing import Any

from PIL import Image

COLOURS = (
    "#000000",
    "#ffffff",
    "#5f6368",
    "#c62828",
    "#ef6c00",
    "#fbc02d",
    "#2e7d32",
    "#00838f",
    "#1565c0",
    "#6a1b9a",
    "#ad1457",
    "#4e342e",
    "#e3f2fd",
    "#fff3e0",
    "#e8f5e9",
)
LIGHT = ("#ffffff", "#eeeeee", "#e3f2fd", "#fff3e0", "#e8f5e9", "#fce4ec")
CONTRAST = 3.0  # of icon and ground at least, as WCAG 2.1 (1.4.11) asks of icons
MARGIN = 1 / 16  # on each side, of the icon's longer one


def number(text: str) -> int:
    """A hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2.1 defines it, 1 to 21."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), linear))


PAIRS = [pair for pair in itertools.permutations(COLOURS, 2) if contrast(*pair) >= CONTRAST]


def drawing(family: str, name: str, collection: dict[str, Any]) -> tuple[str, str]:
    """Returns an icon as a square SVG, and the colour to lay it on."""
    icon = collection["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    # In Iconify's format, an icon without a size has 16 x 16.
    width, height = (icon.get(k, collection.get(k, 16)) for k in ("width", "height"))
    side = max(width, height) * (1 + 2 * MARGIN)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    body, chosen = icon["body"], number(f"{family}/{name}")
    if "currentColor" in body:
        ink, ground = PAIRS[chosen % len(PAIRS)]
        body = body.replace("currentColor", ink)
    else:
        ground = LIGHT[chosen % len(LIGHT)]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}">{body}</svg>'
    )
    return svg, ground


def render(svg: str, ground: str, resolution: int) -> bytes:
    """Draws an SVG; returns a PNG in RGB.

    resvg 0.48 panics on the filters of 19 icons (its issue 659) and writes this to stderr. These
    icons are drawn one pixel larger, which works, and shrunk.

    Raises:
        ValueError: it can't be drawn.
    """
    for side in (resolution, resolution + 1, resolution + 2):
        try:
            return _render(svg, ground, side, resolution)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # it is no Exception
                raise
    raise ValueError("resvg panics")


def _render(svg: str, ground: str, side: int, resolution: int) -> bytes:
    import resvg_py

    data = resvg_py.svg_to_bytes(
        svg_string=svg,
        background=ground,
        width=side,
        height=side,
        skip_system_fonts=True,  # no icon has text, and a machine's fonts are its own
    )
    picture, out = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
    if side != resolution:
        picture = picture.resize((resolution, resolution), Image.Resampling.BOX)
    picture.save(out, "PNG")
    return out.getvalue()
