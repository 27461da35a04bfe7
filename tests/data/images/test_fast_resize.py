import io

import numpy as np
import pytest
from PIL import Image

from aced.data.images.decode import Picture
from aced.data.images.fast_resize import resize_fast
from aced.data.images.pictures import Look, Viewer
from aced.data.images.transforms import ResizeConfig, resize

MODES = [
    ResizeConfig(mode, name) for mode in ("squash", "crop") for name in ("bicubic", "bilinear")
]
DOWN = ResizeConfig("crop", margin="down")


def whole(pixels, orientation=1):
    return Picture(pixels, *map(float, pixels.shape[:2]), orientation)


def natural(height, width, seed):
    """Noise with the spectrum of photographs, amplitude as 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
    planes = np.fft.irfft2(noise, (height, width))
    planes = 0.4 * planes + 0.8 * planes[:1]  # mostly grey
    return np.clip(127 + 45 * planes / planes.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("config", MODES, ids=str)
@pytest.mark.parametrize(
    ("height", "width", "resolution", "limit"),
    [
        (64, 64, 96, 1.4),
        (96, 107, 96, 1.2),
        (120, 110, 96, 1.7),
        (192, 192, 96, 0.6),
        (150, 200, 96, 1.5),
        (301, 401, 96, 1.0),
        (900, 600, 64, 0.7),
        (512, 512, 224, 0.6),
    ],
)
def test_the_difference_from_exact_resizing(config, height, width, resolution, limit):
    """In grey levels. JPEG of quality 90 changes such pictures by 3 (at half their size) to 7."""
    for seed in range(3):
        pixels = natural(height, width, seed)
        exact = resize(pixels, resolution, config).astype(int)
        fast = resize_fast(whole(pixels), resolution, config)
        assert fast.dtype == np.uint8
        difference = np.abs(fast - exact)
        assert difference.mean() < limit
        assert abs((fast - exact).mean()) < 0.3  # no brightness lost


@pytest.mark.parametrize("config", MODES, ids=str)
@pytest.mark.parametrize("resolution", [100, 224, 256])
def test_the_difference_of_scaled_jpegs(config, resolution):
    """Averages over squares are sharper than Pillow's filters, the more so than its bilinear one.

    The pictures' own JPEG error, at half their size, is 3; photographs have half of either.
    """
    pixels = natural(512, 640, 0)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    record, looks = {"image": out.getvalue()}, [Look(resolution, config)]
    (exact,), (fast,) = (Viewer(looks, how, 10**6)(record) for how in ("exact", "fast"))
    difference = fast.astype(int) - exact
    assert np.abs(difference).mean() < (3.8 if config.interpolation == "bicubic" else 5.8)
    assert np.abs(difference.mean((0, 1))).max() < 0.3


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("ratio", [1.5, 2.0, 2.7, 5.3])
def test_patch_matrix_projects_onto_resizable_pictures(name, ratio):
    """The finest stripes, which would come out as coarse ones, of full contrast."""
    side = round(64 * ratio)
    for stripes in (np.indices((side, side)).sum(0) % 2, np.indices((side, side))[1] % 2):
        pixels = np.repeat((255 * stripes).astype(np.uint8)[..., None], 3, axis=-1)
        out = resize_fast(whole(pixels), 64, ResizeConfig("squash", name)).astype(float)
        inside = out[4:-4, 4:-4]
        exact = resize(pixels, 64, ResizeConfig("squash", name)).astype(float)[4:-4, 4:-4]
        assert inside.std() < exact.std() + 4  # of 127 in the input


@pytest.mark.parametrize("config", [*MODES, DOWN], ids=str)
@pytest.mark.parametrize("size", [(97, 97), (130, 100), (101, 333), (640, 481)])
@pytest.mark.parametrize("orientation", [1, 2, 6, 7])
def test_nothing_moves(config, size, orientation):
    """On ramps every filter gives the position that it samples: here to 1/10 of a pixel."""
    y, x = np.mgrid[: size[0], : size[1]]
    step = 250 / np.array(size)
    pixels = np.stack([y * step[0], x * step[1], 0 * x], axis=-1).round().astype(np.uint8)
    picture = whole(pixels, orientation)
    exact = resize(np.ascontiguousarray(picture.upright(pixels)), 48, config).astype(int)
    out = resize_fast(picture, 48, config)
    pixel = 250 / 48 * (1 if config.mode == "squash" else 1 / max(1, min(4, max(size) / min(size))))
    inside = (out - exact)[3:-3, 3:-3, :2]
    assert abs(inside.mean()) < 0.1 * pixel + 0.5
    assert np.abs(inside).max() <= 0.1 * pixel + 1.5


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_partial_rows_and_columns_keep_their_place(mode):
    """A picture of 101 x 133 pixels at 1/8 covers 12.625 x 16.625 of 13 x 17 pixels."""
    y, x = np.mgrid[:104, :136]
    full = np.stack([2.0 * y, 1.5 * x, 0.0 * x], axis=-1)
    small = full.reshape(13, 8, 17, 8, 3).mean((1, 3)).round().astype(np.uint8)
    exact = resize(full[:101, :133].round().astype(np.uint8), 12, ResizeConfig(mode)).astype(int)
    out = resize_fast(Picture(small, 12.625, 16.625), 12, ResizeConfig(mode))
    assert np.abs(out - exact)[1:-1, 1:-1].max() <= 1.5  # a pixel is 16.8 levels


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = natural(24, 24, 0)
    np.testing.assert_array_equal(resize_fast(whole(pixels), 24, ResizeConfig("crop")), pixels)
    turned = resize_fast(whole(pixels, 6), 24, ResizeConfig())
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


def test_crop_of_an_extreme_picture_stays_small():
    pixels = np.zeros((2, 60_000, 3), np.uint8)
    pixels[:, 29_990:30_010] = 200
    assert resize_fast(whole(pixels), 64, ResizeConfig("crop")).mean() > 190


def test_squashing_strips_is_pillows_too():
    strip = natural(6, 1200, 0)
    exact = np.asarray(Image.fromarray(strip).resize((32, 32), Image.Resampling.BICUBIC))
    out = resize_fast(whole(strip), 32, ResizeConfig())
    assert np.abs(out.astype(int) - exact).mean() < 2
