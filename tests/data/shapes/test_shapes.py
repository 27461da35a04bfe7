import collections
import re

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.shapes import scenes
from aced.data.shapes.scenes import Scene, Shapes, ShapesConfig, Thing, describe, draw

PLAIN = re.compile(
    r"(?:a picture of |there is )?a (small|medium|large) (\w+) (\w+) "
    r"((?:in|at|on) the [a-z ]+?) on a (black|white|gray|brown) background(, .*)?"
)


def star_and_circle(place, other):
    star = Thing("star", "red", "large", place, (0.0, 0.0))
    circle = Thing("circle", "blue", "tiny", other, (0.0, 0.0))
    return Scene((star, circle), "black", "")


def share_of(image, colour, tolerance=12):
    return (np.abs(image.astype(int) - colour).max(axis=-1) <= tolerance).mean()


def test_examples_depend_on_seed_and_index_alone():
    first, second = Shapes(ShapesConfig(size=50)), Shapes(ShapesConfig(size=999))
    backwards = {i: second[i] for i in reversed(range(50))}
    for i in range(50):
        np.testing.assert_array_equal(first[i]["image"], backwards[i]["image"])
        assert first[i]["texts"] == backwards[i]["texts"]
    other = Shapes(ShapesConfig(size=50, seed=1))
    assert sum(first[i]["texts"] == other[i]["texts"] for i in range(50)) < 5


def test_stream_is_fixed_for_ever():
    # Numbers in reports are made on these scenes: a change here needs another fingerprint.
    example = Shapes(ShapesConfig())[0]
    assert example["texts"] == (
        "a small cyan star at the top on a black background, "
        "above and to the left of a tiny orange circle",
    )


def test_splits_are_different_scenes():
    train, val = Shapes(ShapesConfig()), Shapes(ShapesConfig(split="val"))
    same = sum(np.array_equal(train[i]["image"], val[i]["image"]) for i in range(200))
    assert same == 0
    assert train.fingerprint != val.fingerprint


def test_noise_changes_captions_only_and_is_known():
    clean = Shapes(ShapesConfig())
    noisy = Shapes(ShapesConfig(wrong=0.2, vague=0.1, duplicate=0.3))
    truth = {describe(clean.scene(i)) for i in range(16)}
    kinds = collections.Counter()
    for i in range(1000):
        a, b = clean[i], noisy[i]
        np.testing.assert_array_equal(a["image"], b["image"])
        kind = scenes.NOISE_KINDS[b["noise"]]
        kinds[kind] += 1
        assert b["is_noisy"] == (kind != "clean")
        assert not a["is_noisy"]
        assert (a["texts"] == b["texts"]) == (kind == "clean")
        assert (b["texts"][0] in scenes.VAGUE) == (kind == "vague")
        assert (b["texts"][0] in truth) == (kind == "duplicate" or (i < 16 and kind == "clean"))
    # Four standard deviations of a binomial of 1000 draws are at most 63.
    for kind, expected in {"wrong": 200, "vague": 100, "duplicate": 300, "clean": 400}.items():
        assert abs(kinds[kind] - expected) < 63


def test_validation_is_clean():
    val = Shapes(ShapesConfig(split="val", wrong=0.5, vague=0.5))
    assert not any(val[i]["is_noisy"] for i in range(100))


def test_captions_are_true_of_the_scene():
    data = Shapes(ShapesConfig(resolution=16))
    for i in range(300):
        scene, example = data.scene(i), data[i]
        size, colour, shape, place, background, _ = PLAIN.fullmatch(example["texts"][0]).groups()
        main = scene.things[0]
        assert (size, colour, shape) == (main.size, main.colour, main.shape)
        assert (place, background) == (scenes.PLACES[main.place], scene.background)
        assert scenes.CLASS_NAMES[example["label"]] == f"{colour} {shape}"
        order = ("tiny", "small", "medium", "large")
        assert all(order.index(t.size) < order.index(main.size) for t in scene.things[1:])
        assert len({t.place for t in scene.things}) == len(scene.things) <= 4


@pytest.mark.parametrize(
    ("place", "other", "relation"),
    [
        (0, 2, "to the left of"),
        (5, 3, "to the right of"),
        (1, 7, "above"),
        (6, 0, "below"),
        (0, 8, "above and to the left of"),
        (6, 2, "below and to the left of"),
    ],
)
def test_relations(place, other, relation):
    text = describe(star_and_circle(place, other))
    assert text.endswith(f"background, {relation} a tiny blue circle")


def test_pictures_match_their_captions():
    image = draw(star_and_circle(0, 8), 96)
    red, blue = scenes.COLOURS["red"], scenes.COLOURS["blue"]
    assert share_of(image[:48, :48], red) > 0.1
    assert share_of(image[64:, 64:], blue) > 0.05
    assert share_of(image[:48, 48:], scenes.BACKGROUNDS["black"]) == 1.0


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
def test_areas_are_geometrys(size):
    """Filled area of a circle, square and ring against the formulas, within the drawn edge."""
    radius = scenes.SIZES[size] * 256
    areas = {
        "circle": np.pi * radius**2,
        "square": 2 * (1.2 * radius) ** 2,
        "ring": np.pi * radius**2 * (1 - 0.55**2),
    }
    for shape, expected in areas.items():
        thing = Thing(shape, "red", size, 4, (0.0, 0.0))
        image = draw(Scene((thing,), "black", ""), 256).astype(float)
        background, red = 10.0, scenes.COLOURS["red"][0]
        area = ((image[..., 0] - background) / (red - background)).sum()
        assert area == pytest.approx(expected, rel=0.02, abs=8 * radius)


def test_all_classes_are_equally_frequent_in_a_round():
    data = Shapes(ShapesConfig())
    labels = collections.Counter(data.scene(i).label for i in range(6912))
    assert set(labels.values()) == {6912 // 64}


def test_captions_are_many_and_validation_captions_distinct():
    val = Shapes(ShapesConfig(split="val"))
    assert len({describe(val.scene(i)) for i in range(2000)}) == 2000
    train = Shapes(ShapesConfig(size=2**31 - 1))
    far = {describe(train.scene(i * 1_000_003)) for i in range(2000)}
    # Of N equally likely captions 2000 draws repeat about 2000^2 / 2N: 20 where N is 10^5.
    single = sum("," not in text for text in far)
    assert 2000 - len(far) < 20 + single**2 / 6912


def test_bounds_and_bad_settings():
    data = Shapes(ShapesConfig(size=3))
    with pytest.raises(IndexError, match="Example 3 of shapes/train, which has 3"):
        data[3]
    with pytest.raises(ConfigError, match="at most 1"):
        ShapesConfig(wrong=0.7, vague=0.7)
    with pytest.raises(ConfigError, match="resolution"):
        ShapesConfig(resolution=4)
