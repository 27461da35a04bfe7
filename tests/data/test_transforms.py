import contextlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from aced.data.transforms import DecodeError, ResizeConfig, decode, resize


def encode(picture, kind="PNG", **settings):
    out = io.BytesIO()
    picture.save(out, kind, **settings)
    return out.getvalue()


def smooth(height, width, seed=0):
    """A picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * rng.uniform(0.05, 0.9) + y * rng.uniform(0.05, 0.9) + c) for c in range(3)]
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def filter_matrix(n_in, n_out, name):
    """The anti-aliased resampling matrix, from the filters' definitions, in float64."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    centre = (np.arange(n_out)[:, None] + 0.5) * scale
    x = np.abs((np.arange(n_in)[None] + 0.5 - centre) / stretch)
    if name == "bilinear":
        weight = np.maximum(1 - x, 0)
    else:  # Keys' cubic, a = -1/2
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weight / weight.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(90, 50), (20, 100), (32, 32)])
def test_squash_is_the_antialiased_filter(name, size):
    image = smooth(*size)
    rows, columns = filter_matrix(size[0], 32, name), filter_matrix(size[1], 32, name)
    expected = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)
    out = resize(image, 32, ResizeConfig("squash", name))
    assert out.dtype == np.uint8
    # Pillow rounds to whole grey levels after each of its two passes.
    assert np.abs(out - np.clip(expected, 0, 255)).max() <= 1.5


@pytest.mark.parametrize("size", [(90, 51), (51, 90), (37, 64), (200, 33), (30, 31), (32, 500)])
def test_crop_is_torchvisions_resize_and_centre_crop(size):
    image = smooth(*size)
    height, width = size
    long = int(32 * max(size) / min(size))
    new = (long, 32) if width > height else (32, long)
    whole = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BICUBIC))
    top, left = round((whole.shape[0] - 32) / 2), round((whole.shape[1] - 32) / 2)
    expected = whole[top : top + 32, left : left + 32].astype(int)
    out = resize(image, 32, ResizeConfig("crop"))
    assert np.abs(out - expected).max() <= 1


def test_crop_of_an_extreme_picture_stays_small():
    image = np.zeros((2, 60_000, 3), np.uint8)
    image[:, 29_990:30_010] = 200
    assert resize(image, 64, ResizeConfig("crop")).mean() > 190  # only the middle is looked at


def test_a_picture_of_the_right_size_is_not_touched():
    image = smooth(24, 24)
    assert resize(image, 24, ResizeConfig("crop")) is image


def test_lossless_decoding_is_exact():
    image = smooth(13, 17)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(image))), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = smooth(8, 12)
    # From the EXIF standard: which transformation shows the stored picture upright.
    upright = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90(image),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(image), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(data), upright[orientation])


def test_transparency_is_laid_on_white():
    rgb, alpha = smooth(6, 6), np.arange(0, 252, 7, dtype=np.uint8).reshape(6, 6)
    picture = Image.fromarray(np.dstack([rgb, alpha]))
    share = alpha[..., None] / 255
    expected = share * rgb + (1 - share) * 255
    assert np.abs(decode(encode(picture)) - expected).max() <= 1


def test_transparent_palette_colour_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    out = decode(encode(picture, "PNG", transparency=0))
    assert out.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_16_bit_greys_are_scaled():
    grey = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    out = decode(encode(Image.fromarray(grey)))
    assert out[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (out == out[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    out = decode(encode(Image.fromarray(smooth(9, 5)).convert(mode), kind))
    assert (out.shape, out.dtype) == ((9, 5, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_broken_pictures_raise_decode_errors(kind):
    data = encode(Image.fromarray(smooth(64, 64)), kind)
    for cut in (0, 3, 20, len(data) // 2):
        with pytest.raises(DecodeError):
            decode(data[:cut])


def test_random_damage_raises_nothing_else():
    data = bytearray(encode(Image.fromarray(smooth(32, 32)), "PNG"))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = data.copy()
        for position in rng.integers(0, len(data), 4):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(DecodeError):
            assert decode(bytes(damaged)).shape[-1] == 3


def test_bombs_are_refused_before_decoding():
    data = encode(Image.new("1", (10_000, 10_000)))
    assert len(data) < 100_000
    with pytest.raises(DecodeError, match=r"10000 x 10000 pixels are more than data.max_pixels"):
        decode(data)
    with pytest.raises(DecodeError, match="max_pixels = 99"):
        decode(encode(Image.new("RGB", (10, 10))), max_pixels=99)


def test_float_pictures_are_refused():
    data = encode(Image.fromarray(np.full((2, 2), math.pi, np.float32)), "TIFF")
    with pytest.raises(DecodeError, match="floating-point"):
        decode(data)
