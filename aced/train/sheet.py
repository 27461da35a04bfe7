"""A contact sheet: chosen and rejected examples of a step with their captions, as one picture."""

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from aced.data.images.decode import DecodeError, decode
from aced.metrics.shown import Picture
from aced.train.chosen import Example, SuperBatch

EXAMPLES = 12  # of either kind
_COLUMNS = 6
_SIDE = 128  # of a picture, pixels
_CELL_WIDTH, _CELL_HEIGHT = 150, 184
_HEADING = 30  # the height of a line above the pictures
_LETTERS, _LINES = 25, 3  # of a caption
_RED = (204, 51, 51)


def draw(batch: SuperBatch, max_pixels: int) -> Picture:
    """The contact sheet of a step; wrong pairs are framed in red if the data label them.

    Args:
        batch: the samples.
        max_pixels: larger encoded pictures are not decoded.
    """
    is_labelled = any(x.is_noisy is not None for x in (*batch.chosen, *batch.left))
    note = " (framed in red: labelled as wrong by the data)" if is_labelled else ""
    parts = [
        (f"Step {batch.step:,}, chosen of {batch.size:,}{note}", batch.chosen),
        ("Rejected", batch.left),
    ]
    heights = [_HEADING + _CELL_HEIGHT * -(-len(examples) // _COLUMNS) for _, examples in parts]
    sheet = Image.new("RGB", (_CELL_WIDTH * _COLUMNS, sum(heights)), "white")
    top = 0
    for (title, examples), height in zip(parts, heights, strict=True):
        ImageDraw.Draw(sheet).text((8, top + 6), title, "black", ImageFont.load_default(16))
        _draw_examples(sheet, top + _HEADING, examples, max_pixels)
        top += height
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=90, subsampling=0)  # frames stay red
    return Picture(out.getvalue(), *sheet.size)


def _draw_examples(
    sheet: Image.Image, top: int, examples: Sequence[Example], max_pixels: int
) -> None:
    pen = ImageDraw.Draw(sheet)
    for i, example in enumerate(examples):
        row, column = divmod(i, _COLUMNS)
        x, y = column * _CELL_WIDTH + 8, top + row * _CELL_HEIGHT
        text = "; ".join(example.texts)
        try:
            small = _thumbnail(example, max_pixels)
        except DecodeError as error:
            text = str(error)
        else:
            sheet.paste(small, (x, y + _SIDE - small.height))  # captions are right below
            if example.is_noisy:
                corner = x + small.width + 2, y + _SIDE + 2
                pen.rectangle(((x - 3, y + _SIDE - small.height - 3), corner), None, _RED, 3)
        lines = textwrap.wrap(text, _LETTERS, max_lines=_LINES, placeholder=" ...")
        place = x, y + _SIDE + 4
        pen.multiline_text(place, "\n".join(lines), "black", ImageFont.load_default(11), spacing=2)


def _thumbnail(example: Example, max_pixels: int) -> Image.Image:
    """The picture of an example within `_SIDE` pixels; small pictures are enlarged.

    Raises:
        DecodeError: it cannot be read.
    """
    pixels = example.picture
    if pixels is None:
        raise DecodeError("; ".join(example.texts))
    if isinstance(pixels, bytes):
        pixels = decode(pixels, max_pixels, at_least=_SIDE)
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
