"""Random crops against torchvision's rule, and what they leave alone."""

import itertools

import numpy as np
import pytest
from scipy import stats

from aced.config import ConfigError
from aced.data.draws import Draws
from aced.data.images.augment import AugmentConfig, augment, random_box, stored
from tests.convert import foreign

DIME = AugmentConfig(crop_area=(0.08, 1.0), flip=0.5)
# First and last column and row of stored augmentations, by the example's id and their number.
PINNED = {
    (0, 0): (160, 2, 61, 102),
    (0, 1): (142, 41, 27, 148),
    (7, 0): (23, 32, 92, 104),
    (7, 1): (108, 38, 16, 132),
    (2147483646, 0): (54, 35, 144, 106),
    (2147483646, 1): (138, 21, 28, 111),
}


def boxes(width, height, config=DIME, count=4000):
    rng = Draws(0, 0, 0)
    return np.array([random_box(width, height, config, rng) for _ in range(count)])


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (90, 80)])
def test_boxes_lie_inside_and_cover_the_range(size):
    left, upper, right, lower = boxes(*size).T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= size[0]).all()
    assert (lower <= size[1]).all()
    width, height = right - left, lower - upper
    area = width * height / (size[0] * size[1])
    assert area.min() < 0.1
    assert area.max() > 0.85
    rounding = 1 + 1.5 / np.minimum(width, height)  # both sides are whole pixels
    assert (width / height < 4 / 3 * rounding).all()
    assert (height / width < 4 / 3 * rounding).all()


def test_small_areas_are_uniform_and_centres_spread():
    """Crops that always fit follow the rule exactly: area uniform, place uniform."""
    config = AugmentConfig(crop_area=(0.1, 0.3))
    left, upper, right, lower = boxes(500, 500, config).T
    area = (right - left) * (lower - upper) / 500**2
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.15, 0.2, 0.25], atol=0.006)
    ratio = np.log((right - left) / (lower - upper))
    np.testing.assert_allclose(
        np.quantile(ratio, [0.25, 0.75]), np.log(4 / 3) * np.array([-0.5, 0.5]), atol=0.02
    )
    place = left / (500 - (right - left))
    np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)


def test_same_parameters_as_torchvision():
    """The share of crops by area, against torchvision's own sampler, on an odd picture."""
    torch = foreign.torch()
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    picture = torch.zeros(3, 90, 400)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(3000)
        ]
    )
    left, upper, right, lower = boxes(400, 90, count=3000).T
    for ours, other in ((right - left, theirs[:, 3]), (lower - upper, theirs[:, 2])):
        np.testing.assert_allclose(
            np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(other, [0.1, 0.5, 0.9]), atol=4
        )


def test_pictures_that_no_crop_fits():
    """A line of pixels: the middle, at the nearest ratio."""
    assert random_box(400, 9, DIME, Draws(0, 0, 0)) == (194, 0, 206, 9)
    assert random_box(1, 1, DIME, Draws(0, 0, 0)) == (0, 0, 1, 1)


def test_flips_and_nothing():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    rng = Draws(0, 0, 0)
    assert augment(image, AugmentConfig(), rng) is image
    flipped = augment(image, AugmentConfig(flip=1.0), rng)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    shares = [augment(image, AugmentConfig(flip=0.5), rng)[0, 0, 0] for _ in range(400)]
    assert 0.42 < np.mean(np.array(shares) == 0) < 0.58


def test_settings():
    with pytest.raises(ConfigError, match="crop_area"):
        AugmentConfig(crop_area=(0.0, 1.0))
    with pytest.raises(ConfigError, match=r"crop_ratio\[0\] must be at least 0.001 and at most"):
        AugmentConfig(crop_ratio=(1e-308, 1.0))  # an area divided by it would be infinite
    with pytest.raises(ConfigError, match="flip"):
        AugmentConfig(flip=2.0)


def test_stored_augmentations_stay_the_same():
    """For ever: caches hold their embeddings. The numbers are from the day of the first one."""
    places = np.stack(np.meshgrid(np.arange(200), np.arange(150)), axis=-1).astype(np.uint8)
    image = np.concatenate([places, np.zeros((150, 200, 1), np.uint8)], axis=2)
    config = AugmentConfig(crop_area=(0.1, 0.6), flip=0.5)
    found = {}
    for index, number in itertools.product((0, 7, 2**31 - 2), range(2)):
        cut = stored(image, config, index, number)
        np.testing.assert_array_equal(cut, stored(image, config, index, number))
        found[index, number] = (*cut[0, 0, :2].tolist(), *cut[-1, -1, :2].tolist())
    assert found == PINNED


def test_stored_augmentations_are_distributed_as_new_ones():
    image = np.arange(100, dtype=np.uint8)[None, :, None].repeat(80, axis=0).repeat(3, axis=2)
    config = AugmentConfig(crop_area=(0.2, 0.8), flip=0.25)
    rng = Draws(0, 0, 0)
    ours = [stored(image, config, index, 4) for index in range(1500)]
    fresh = [augment(image, config, rng) for _ in range(1500)]
    for of in (
        lambda cut: cut.shape[0],
        lambda cut: cut.shape[1],
        lambda cut: int(cut[0, :, 0].min()),
        lambda cut: cut.shape[0] * cut.shape[1],
    ):
        assert stats.ks_2samp(list(map(of, ours)), list(map(of, fresh))).pvalue > 0.001
    is_flipped = [cut[0, 0, 0] > cut[0, -1, 0] for cut in ours]
    assert stats.binomtest(sum(is_flipped), 1500, 0.25).pvalue > 0.001
