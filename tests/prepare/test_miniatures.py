"""Copies hardly differ in their miniatures; what is only alike does."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from aced.prepare.miniatures import LARGEST, MEAN, SIZE, are_copies, differences, miniature, oklab
from tests.prepare.test_perceptual_hash import scene


def stack(*pictures):
    return np.stack([np.frombuffer(miniature(np.asarray(p)), np.uint8) for p in pictures])


def heart(colour, arrow=0):
    """A drawing with a thing in the middle, and one that points up or down."""
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(48, 88), (8, 40), (24, 12), (48, 28), (72, 12), (88, 40)], colour)
    if arrow:
        draw.polygon([(48, 48 - 12 * arrow), (40, 48 + 8 * arrow), (56, 48 + 8 * arrow)], "white")
    return image


def test_oklab_has_published_values_but_for_the_flare():
    # Ottosson's blog has red, green and blue with these lightnesses and axes.
    published = [[0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312]]
    found = oklab(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8))
    assert np.abs(found - published).max() < 0.02
    white, black, dark = oklab(np.array([[255] * 3, [0] * 3, [1] * 3], np.uint8))
    assert white == pytest.approx([1, 0, 0], abs=0.002)
    assert 0 < (dark - black)[0] < 0.004


def test_differences_per_cell():
    one, other = np.zeros((2, 1, SIZE), np.uint8)
    one[0, 17] = 51  # lightness of the second row's second place
    other[0, 256] = 102  # a colour's first axis, of the first four places
    mean, largest = differences(one, other)
    assert largest[0] == pytest.approx(np.hypot(0.2, 0.4), abs=5e-5)
    assert mean[0] == pytest.approx((np.hypot(0.2, 0.4) + 3 * 0.4) / 256, abs=5e-5)
    assert [part.shape for part in differences(one[:0], other[:0])] == [(0,), (0,)]


@pytest.mark.parametrize("encoding", [("JPEG", 30), ("JPEG", 95), ("WEBP", 50), ("PNG", 0)])
@pytest.mark.parametrize("scale", [0.5, 0.7, 1, 2])
def test_rescaled_and_recompressed_copies_are_found(encoding, scale):
    (form, quality), pictures, copies = encoding, [], []
    for i, picture in enumerate([scene(3), scene(4)]):
        size = [round(side * scale) for side in picture.size]
        filters = Image.Resampling.LANCZOS, Image.Resampling.BOX
        out = io.BytesIO()
        options = {"quality": quality} if quality else {}
        picture.resize(size, filters[i]).save(out, form, **options)
        pictures.append(picture)
        copies.append(Image.open(out).convert("RGB"))
    assert are_copies(stack(*pictures), stack(*copies)).tolist() == [True, True]


def test_other_colours_and_other_details_are_no_copies():
    yellow, blue, up, down = (
        heart("gold"),
        heart("royalblue"),
        heart("gold", arrow=1),
        heart("gold", arrow=-1),
    )
    found = are_copies(stack(yellow, up, yellow, yellow), stack(blue, down, up, yellow))
    assert found.tolist() == [False, False, False, True]


def test_bounds_match_the_benchmark():
    from benchmarks import table

    rows = table.read("near_duplicates.csv")
    ours = [row for row in rows if (row["mean"], row["largest"]) == (str(MEAN), str(LARGEST))]
    assert {row["part"] for row in ours} == {"copies", "families", "cases"}
    assert {row["found"] for row in ours if row["part"] == "cases"} == {"0"}
