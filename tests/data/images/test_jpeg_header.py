import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from aced.data.images.decode import read_jpeg_header


def jpeg(height=40, width=72, mode="RGB", **settings):
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "JPEG", **settings)
    return out.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (40, 72), (9, 65_500)])
def test_ordinary_jpegs(size, mode, progressive):
    header = read_jpeg_header(jpeg(*size, mode, progressive=progressive))
    assert (header.height, header.width, header.has_note) == (*size, False)


@pytest.mark.parametrize("note", ["exif", "xmp"])
def test_notes_are_seen(note):
    header = read_jpeg_header(jpeg(**{note: Image.Exif().tobytes() if note == "exif" else b"<x/>"}))
    assert (header.height, header.width, header.has_note) == (40, 72, True)


def test_other_segments_are_passed_over():
    data = jpeg(comment=b"\xff\xc0\xff\xda" * 10, icc_profile=b"p" * 70_000, dpi=(3, 3))
    header = read_jpeg_header(data)
    assert (header.height, header.width, header.has_note) == (40, 72, False)


def changed(at, value):
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + at : frame + at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG" + bytes(50),
        jpeg(mode="CMYK"),
        jpeg()[:100],  # no frame yet
        jpeg()[: jpeg().index(b"\xff\xc0") + 6],  # in the middle of the frame
        changed(1, b"\xc9"),  # arithmetic coding
        changed(4, b"\x0c"),  # 12 bits
        changed(5, b"\0\0"),  # no height
        changed(9, b"\2"),  # two colours
        jpeg()[:2] + b"junk" + jpeg()[2:],
        jpeg()[:2] + jpeg()[(f := jpeg().index(b"\xff\xc0")) : f + 19] + jpeg()[2:],  # two frames
    ],
)
def test_other_files_are_left_to_pillow(data):
    assert read_jpeg_header(data) is None


def test_random_damage_does_no_harm():
    rng = np.random.default_rng(0)
    data = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    for _ in range(500):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] = rng.integers(256)
        header = read_jpeg_header(bytes(damaged[: rng.integers(len(data))]))
        assert header is None or 0 < min(header.width, header.height) < 2**16


def test_a_segment_that_leads_nowhere():
    start = jpeg()[:2]
    assert read_jpeg_header(start + b"\xff\xe0" + struct.pack(">H", 0) + bytes(9)) is None
    assert read_jpeg_header(start + b"\xff\xe0" + struct.pack(">H", 65_535) + bytes(9)) is None
