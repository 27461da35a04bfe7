import numpy as np
import pytest
from PIL import Image

from aced.data.images.transforms import LONGEST_WHOLE, ResizeConfig, resize, resize_middle
from tests.convert import foreign


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


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_crop_is_torchvisions_resize_and_centre_crop(name):
    """Bit for bit: odd sizes, reduced and enlarged, and strips of up to 1 : 64."""
    foreign.torch()
    theirs = pytest.importorskip("torchvision.transforms")
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 200, (40, 2)).tolist(), [1, 64], [64, 1], [5, 320], [640, 10]]
    for height, width in sizes:
        if max(height, width) > LONGEST_WHOLE * min(height, width):
            continue
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for resolution in (1, 7, 32, 45):
            method = theirs.InterpolationMode(name)
            steps = [theirs.Resize(resolution, method), theirs.CenterCrop(resolution)]
            expected = np.asarray(theirs.Compose(steps)(Image.fromarray(image)))
            out = resize(image, resolution, ResizeConfig("crop", name))
            np.testing.assert_array_equal(out, expected, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("size", [(90, 51), (51, 90), (37, 64), (200, 33), (30, 31), (32, 500)])
def test_the_middle_alone_is_nearly_that_of_the_whole(size):
    image, config = smooth(*size), ResizeConfig("crop")
    exact = resize(image, 32, config).astype(int)
    assert np.abs(resize_middle(image, 32, config) - exact).max() <= 1


def test_crop_of_an_extreme_picture_stays_small():
    image = np.zeros((2, 60_000, 3), np.uint8)
    image[:, 29_990:30_010] = 200
    assert resize(image, 64, ResizeConfig("crop")).mean() > 190  # only the middle is looked at


def test_a_picture_of_the_right_size_is_not_touched():
    image = smooth(24, 24)
    assert resize(image, 24, ResizeConfig("crop")) is image


@pytest.mark.parametrize(("margin", "first"), [("nearest", [4, 2]), ("down", [3, 2])])
def test_half_a_pixel_of_margin(margin, first):
    """7 and 5 columns too many: torchvision rounds (to even numbers), transformers goes down."""
    for extra, expected in zip((7, 5), first, strict=True):
        image = np.zeros((30, 30 + extra, 3), np.uint8)
        image[:] = np.arange(30 + extra)[None, :, None]
        out = resize(image, 30, ResizeConfig("crop", margin=margin))
        np.testing.assert_array_equal(out[0, :, 0], expected + np.arange(30))
