import contextlib
import io
import math
import resource
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from aced.data.images.decode import DecodeError, decode, load, picture_size

# From the EXIF standard: which transformation shows the stored picture upright.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def encode(picture, kind="PNG", **settings):
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    out = io.BytesIO()
    picture.save(out, kind, **settings)
    return out.getvalue()


def smooth(height, width, seed=0):
    """A picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * rng.uniform(0.05, 0.9) + y * rng.uniform(0.05, 0.9) + c) for c in range(3)]
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def segment(jpeg, marker, payload):
    """`jpeg` with one more segment, right behind its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + jpeg[2:]


def exif(orientation, order):
    """A hand-made EXIF note with one entry."""
    tiff = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8)
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + tiff + struct.pack(order + "H", 1) + entry + bytes(4)


# --- JPEG ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_pixels_are_pillows(subsampling, progressive):
    for size in [(1, 1), (7, 5), (16, 16), (33, 17), (130, 251), (3, 400)]:
        for quality in (40, 95):
            settings = {"subsampling": subsampling, "progressive": progressive}
            data = encode(smooth(*size), "JPEG", quality=quality, **settings)
            np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpeg_pixels_are_pillows_for_rarer_subsamplings(subsampling):
    data = simplejpeg.encode_jpeg(smooth(45, 61), colorsubsampling=subsampling)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("settings", [{"keep_rgb": True}, {"restart_marker_blocks": 3}])
def test_jpeg_pixels_are_pillows_for_odd_files(settings):
    data = encode(smooth(45, 61), "JPEG", **settings)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_recoverable_errors_of_libjpeg_are_decoded():
    data = encode(smooth(40, 30), "JPEG")
    scan = data.index(b"\xff\xda")
    junk = data[:scan] + bytes(5) + data[scan:] + b"trailer"
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(junk)
    np.testing.assert_array_equal(decode(junk), decode(data))


@pytest.mark.parametrize("ycck", [False, True])
def test_cmyk_jpegs(ycck):
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 60], [10, 20, 200, 90]], np.uint8)
    picture = np.repeat(np.repeat(inks[None], 16, axis=0), 16, axis=1)  # 16 pixels of each colour
    if ycck:  # libjpeg-turbo's; Adobe's convention is that the inks are inverted
        inverted = np.ascontiguousarray(255 - picture)
        data = simplejpeg.encode_jpeg(inverted, quality=100, colorspace="CMYK")
        data = segment(data, 0xEE, b"Adobe\0\x64\0\0\0\0\x02") if b"Adobe" not in data else data
    else:
        data = encode(Image.frombytes("CMYK", (64, 16), picture.tobytes()), "JPEG", quality=100)
    assert simplejpeg.decode_jpeg_header(data)[2] == ("YCCK" if ycck else "CMYK")
    share = 1 - inks / 255.0
    expected = 255 * share[:, :3] * share[:, 3:]
    assert np.abs(decode(data)[8, 8::16] - expected).max() <= 4


@pytest.mark.parametrize("side", [2, 4, 8])
def test_scaled_jpegs_are_averages(side):
    grey = smooth(64, 96)[..., 0]
    data = encode(grey, "JPEG", quality=95)
    expected = by_pillow(data)[..., 0].reshape(64 // side, side, 96 // side, side).mean((1, 3))
    out = decode(data, at_least=64 // side)
    assert out.shape == (64 // side, 96 // side, 3)
    # The average is taken before levels are rounded and clipped.
    assert np.abs(out[..., 0] - expected).max() <= 2
    assert np.abs(out[..., 0] - expected).mean() < 0.4


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize(
    "colours", [((255, 0, 0), (0, 255, 255)), ((255, 255, 0), (0, 0, 255))], ids=str
)
def test_saturated_colours_that_meet(colours, side):
    """libjpeg's fast DCT overflows there: wrong by 79 levels on average at half the size."""
    fields = np.indices((32, 32)).sum(axis=0) % 2
    pixels = np.array(colours, np.uint8)[fields.repeat(8, 0).repeat(8, 1)]
    data = encode(pixels, "JPEG", quality=90, subsampling=2)
    expected = pixels.reshape(256 // side, side, 256 // side, side, 3).mean((1, 3))
    assert np.abs(decode(data, at_least=256 // side) - expected).mean() < 8


def test_scaled_jpegs_are_the_smallest_that_do():
    data = encode(smooth(101, 163), "JPEG")
    for at_least in range(1, 120):
        (picture,) = load(data, 10**6, [at_least])
        k = next((k for k in (8, 4, 2) if math.ceil(101 / k) >= at_least), 1)
        assert picture.pixels.shape == (math.ceil(101 / k), math.ceil(163 / k), 3)
        assert (picture.height, picture.width) == (101 / k, 163 / k)


def test_every_scale_is_decoded_once_and_alone():
    data = encode(smooth(64, 64), "JPEG")
    first, full, second, small = load(data, 10**6, [30, None, 32, 16])
    assert first is second
    for picture, at_least in ((first, 30), (full, None), (small, 16)):
        np.testing.assert_array_equal(picture.pixels, decode(data, at_least=at_least))
    assert len({picture.pixels.shape for picture in (first, full, small)}) == 3


@pytest.mark.parametrize("at_least", [None, 300])
def test_other_threads_run_while_a_jpeg_is_decoded(at_least):
    data = encode(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8), "JPEG")
    done = threading.Event()

    def work():
        decode(data, at_least=at_least)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not done.is_set():  # with Python's lock held, this would be one turn
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 10


# --- Orientation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    image = smooth(8, 12)
    note = Image.Exif()
    note[0x0112] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, exif=note, **settings)
    expected = UPRIGHT[orientation](image)
    np.testing.assert_array_equal(decode(data), expected)
    assert picture_size(data) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned(orientation, order):
    plain = encode(smooth(40, 72), "JPEG")
    data = segment(plain, 0xE1, exif(orientation, order))
    for at_least in (None, 17):
        expected = UPRIGHT[orientation](decode(plain, at_least=at_least))
        np.testing.assert_array_equal(decode(data, at_least=at_least), expected)
    assert picture_size(data) == ((40, 72) if orientation >= 5 else (72, 40))


def test_the_note_may_be_xmp():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><r tiff:Orientation="6"/></x:xmpmeta>'
    plain = encode(smooth(40, 72), "JPEG")
    np.testing.assert_array_equal(decode(segment(plain, 0xE1, xmp)), np.rot90(decode(plain), -1))


@pytest.mark.filterwarnings("ignore")  # Pillow's remark
@pytest.mark.parametrize("note", [b"Exif\0\0", b"Exif\0\0junk", exif(9, "<"), exif(6, "<")[:-14]])
def test_a_broken_note_does_not_break_the_picture(note):
    plain = encode(smooth(40, 72), "JPEG")
    np.testing.assert_array_equal(decode(segment(plain, 0xE1, note)), decode(plain))


# --- Other formats and modes ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_decoding_is_exact(kind):
    image = smooth(13, 17)
    data = encode(image, kind)
    np.testing.assert_array_equal(decode(data, at_least=2), image)
    assert picture_size(data) == (17, 13)


def test_transparency_is_laid_on_white():
    rgb, alpha = smooth(6, 6), np.arange(0, 252, 7, dtype=np.uint8).reshape(6, 6)
    picture = Image.fromarray(np.dstack([rgb, alpha]))
    share = alpha[..., None] / 255
    expected = share * rgb + (1 - share) * 255
    for data in (encode(picture), encode(picture, "WEBP", lossless=True, exact=True)):
        assert np.abs(decode(data) - expected).max() <= 1


def test_transparent_palette_colour_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    out = decode(encode(picture, "PNG", transparency=0))
    assert out.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_palettes_are_looked_up():
    picture = Image.new("P", (2, 2))
    picture.putpalette([1, 2, 3, 40, 50, 60, 7, 8, 9])
    picture.putdata([0, 1, 2, 1])
    expected = [[[1, 2, 3], [40, 50, 60]], [[7, 8, 9], [40, 50, 60]]]
    for kind in ("PNG", "GIF", "BMP"):
        assert decode(encode(picture, kind)).tolist() == expected


def test_16_bit_greys_are_scaled():
    grey = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        out = decode(encode(grey, kind))
        assert out[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (out == out[..., :1]).all()


def test_16_bit_colours_are_scaled():
    rows = np.array([[0, 257, 65_535], [32_896, 514, 40_000]], ">u2")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0))]
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))))
    out = decode(png(*chunks, (b"IEND", b"")))
    assert np.abs(out[:, 0] - rows / 257.0).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encode(Image.fromarray(np.full((9, 5, 3), 255, np.uint8)).convert(mode), kind)
    np.testing.assert_array_equal(decode(data), np.full((9, 5, 3), 255))


@pytest.mark.parametrize("size", [(700, 900), (1, 600_000), (600_000, 1)])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "I;16"])
def test_large_pictures_are_put_together_from_their_parts(mode, size):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    picture = Image.fromarray(pixels).convert("RGB" if mode == "P" else mode.partition(";")[0])
    settings = {}
    expected = pixels[..., :3]
    if mode in ("LA", "RGBA"):
        alpha = pixels[..., 3:] / 255.0
        expected = np.asarray(picture.convert("RGB")) * alpha + 255 * (1 - alpha)
    elif mode == "P":
        picture, settings = picture.quantize(16), {"transparency": 3}
        expected = np.asarray(picture.convert("RGB")).copy()
        expected[np.asarray(picture) == 3] = 255
    elif mode == "I;16":
        grey = pixels[..., :2].copy().view(np.uint16)
        picture, expected = Image.fromarray(grey[..., 0]), grey / 257.0
    out = decode(encode(picture, "TIFF" if mode != "P" else "PNG", **settings))
    assert out.shape == (height, width, 3)
    assert np.abs(out - expected.astype(float)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation_is_used(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    settings = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
    np.testing.assert_array_equal(decode(data), np.full((6, 8, 3), (255, 0, 0)))


@pytest.mark.parametrize("kind", ["PPM", "ICO", "JPEG2000", "PDF", "EPS"])
def test_other_formats_are_refused(kind):
    data = encode(smooth(16, 16), kind)
    for read in (decode, picture_size):
        with pytest.raises(DecodeError, match=r"^not a readable picture: none of JPEG, [^<]*$"):
            read(data)


def test_float_pictures_are_refused():
    data = encode(np.full((2, 2), math.pi, np.float32), "TIFF")
    with pytest.raises(DecodeError, match="floating-point"):
        decode(data)


# --- Broken and hostile files --------------------------------------------------------------------

KINDS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {"compression": "tiff_deflate"}),
}


def png(*chunks):
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        crc = struct.pack(">I", zlib.crc32(name + data))
        out += struct.pack(">I", len(data)) + name + data + crc
    return out


@pytest.mark.parametrize("at_least", [None, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_pictures_are_refused(kind, at_least):
    form, settings = KINDS[kind]
    data = encode(smooth(64, 64), form, **settings)
    for cut in [0, 3, 20, *(len(data) * tenth // 10 for tenth in range(1, 10))]:
        with pytest.raises(DecodeError):
            decode(data[:cut], at_least=at_least)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks about what it reads
@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_raises_only_documented_errors(kind):
    form, settings = KINDS[kind]
    data = bytearray(encode(smooth(32, 32), form, **settings))
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = data.copy()
        start = int(rng.integers(len(data)))
        for position in rng.integers(0, len(data) if start % 2 else min(64, len(data)), 4):
            damaged[position] = rng.integers(256)
        damaged[start:] = damaged[start:] if start % 3 else rng.bytes(20)
        with contextlib.suppress(DecodeError):
            assert decode(bytes(damaged), 10**6, at_least=10).shape[-1] == 3
        with contextlib.suppress(DecodeError):
            assert min(picture_size(bytes(damaged))) >= 0


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_raise_only_documented_errors():
    rng = np.random.default_rng(1)
    starts = [encode(smooth(4, 4), form, **settings)[:12] for form, settings in KINDS.values()]
    for size in rng.integers(0, 2000, 60):
        for start in (b"", *starts):
            for read in (decode, picture_size):
                with contextlib.suppress(DecodeError):
                    read(start + rng.bytes(size))


def test_bombs_are_refused_before_decoding():
    header = (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = png(header, (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    jpeg = bytearray(encode(smooth(8, 8), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (bomb, bytes(jpeg)):
        for at_least in (None, 256):
            with pytest.raises(DecodeError, match=r"30000 x 30000 pixels are more than data\.max"):
                decode(data, at_least=at_least)
        assert picture_size(data) == (30_000, 30_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB, of 2.7 GB
    with pytest.raises(DecodeError, match="max_pixels = 99"):
        decode(encode(smooth(10, 10)), max_pixels=99)
