"""The perceptual hash against scipy's cosine transform, and on copies and other pictures."""

import io

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from aced.prepare.perceptual_hash import perceptual_hash


def scene(seed, size=(160, 120)):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bits_between(one, other):
    a, b = (int.from_bytes(perceptual_hash(np.asarray(x))) for x in (one, other))
    return bin(a ^ b).count("1")


@pytest.mark.parametrize("seed", range(4))
def test_bits_are_those_of_the_cosine_transform(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)  # not resized
    greys = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    low = scipy.fft.dctn(greys, type=2)[:8, :8]
    expected = (low > np.median(low)).ravel()
    found = np.unpackbits(np.frombuffer(perceptual_hash(pixels), np.uint8)).astype(bool)
    np.testing.assert_array_equal(found, expected)


def test_copies_are_near_and_others_far():
    for seed in range(10):
        picture = scene(seed)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=60)
        assert bits_between(picture, Image.open(out)) <= 2
        assert bits_between(picture, picture.resize((80, 60), Image.Resampling.BICUBIC)) <= 2
        assert bits_between(picture, scene(seed + 100)) >= 12
        mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert bits_between(picture, mirrored) >= 12


def test_pictures_of_one_colour_are_alike_whatever_their_size():
    flat = [Image.new("RGB", size, (9, 9, 9)) for size in ((1, 1), (3, 500), (640, 480))]
    assert {perceptual_hash(np.asarray(picture)) for picture in flat} == {b"\x80" + bytes(7)}
