import io

import numpy as np
import pytest
from PIL import Image

from aced.prepare.images import make_thumbnail


def ramp(height, width):
    y, x = np.mgrid[:height, :width]
    planes = [200.0 * y / height, 200.0 * x / width, np.full((height, width), 90.0)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(("size", "expected"), [((90, 60), (48, 32)), ((61, 200), (32, 105))])
def test_the_whole_picture_with_its_aspect_ratio(size, expected):
    with Image.open(io.BytesIO(make_thumbnail(ramp(*size), 32))) as picture:
        assert picture.format == "JPEG"
        out = np.asarray(picture).astype(float)
    assert out.shape == (*expected, 3)
    # The ramp sampled at the middles of the new pixels.
    y, x = ((np.arange(n) + 0.5) / n for n in expected)
    assert np.abs(out[..., 0] - 200 * y[:, None])[2:-2].max() < 6
    assert np.abs(out[..., 1] - 200 * x)[:, 2:-2].max() < 6
    assert np.abs(out[..., 2] - 90).max() < 6


@pytest.mark.parametrize("size", [(32, 32), (20, 100), (32, 5000), (66, 140_000)])
def test_no_thumbnail_if_not_smaller_or_too_long_for_jpeg(size):
    assert make_thumbnail(np.zeros((*size, 3), np.uint8), 32) is None
