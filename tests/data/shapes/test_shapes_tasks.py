"""The tasks of the embedded data set, against answers read off the scenes by other code."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.shapes import entailment, pairs, scenes
from aced.data.shapes.scenes import Shapes, ShapesConfig, draw
from aced.data.shapes.tasks import CLASS_NAMES, ShapesTask, open_shapes
from aced.data.sources import DataConfig, open_source

TASKS = ("questions", "entailment", "two_pictures")
PLACE = "|".join(scenes.PLACES)
COLOUR = "|".join(scenes.COLOURS)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]


def task(name, size=10_000, **settings):
    return ShapesTask(ShapesConfig(task=name, size=size, **settings))


def matching(things, name):
    """The things that words such as "large red stars" or "thing in the top left" fit."""
    words, place = re.fullmatch(rf"(.*?)(?: ({PLACE}))?", name).groups()
    *adjectives, noun = words.split()
    noun = next((s for s in scenes.SHAPES if noun in (s, f"{s}s", f"{s}es")), noun)
    assert noun in scenes.SHAPES or noun in ("thing", "things")
    found = []
    for thing in things:
        fits = all(word in (thing.size, thing.colour) for word in adjectives)
        fits &= noun in ("thing", "things", thing.shape)
        if fits and place in (None, scenes.PLACES[thing.place]):
            found.append(thing)
    return found


def the(things, name):
    """The one thing that is meant; a question must not leave it open."""
    (thing,) = matching(things, name)
    return thing


def is_article_right(text):
    return re.search(r"\ba orange|\ban (?!orange)", text) is None


QUESTIONS = {
    "background": r"(?:what color is|what is the color of) the background",
    "color": r"(?:what color is|what is the color of) the (.+)",
    "shape": r"(?:what shape is|what is the shape of) the (.+)",
    "size": r"(?:what size is|what is the size of) the (.+)",
    "place": r"where is the (.+)",
    "count": r"how many shapes are there",
    "count_kind": r"how many (.+) are there",
    "exists": r"is there an? (.+)",
    "relation": r"is the (.+) (above|below|to the left of|to the right of) the (.+)",
    "is_at": rf"is the (.+) ({PLACE})",
    "is_colored": rf"is the (.+) ({COLOUR})",
}


def question_kind(text):
    return next((k, m) for k, p in QUESTIONS.items() if (m := re.fullmatch(p, text)))


def answer(scene, text):
    kind, match = question_kind(text)
    things, parts = scene.things, match.groups()
    if kind == "background":
        return scene.background
    if kind in ("color", "shape", "size"):
        thing = the(things, parts[0])
        return {"color": thing.colour, "shape": thing.shape, "size": thing.size}[kind]
    if kind == "place":
        return scenes.PLACES[the(things, parts[0]).place]
    if kind == "count":
        return NUMBERS[len(things)]
    if kind == "count_kind":
        return NUMBERS[len(matching(things, parts[0]))]
    if kind == "exists":
        return "yes" if matching(things, parts[0]) else "no"
    if kind == "is_at":
        return "yes" if scenes.PLACES[the(things, parts[0]).place] == parts[1] else "no"
    if kind == "is_colored":
        return "yes" if the(things, parts[0]).colour == parts[1] else "no"
    first, second = the(things, parts[0]), the(things, parts[2])
    y, x = first.place // 3 - second.place // 3, first.place % 3 - second.place % 3
    change = {"above": -y, "below": y, "to the left of": -x, "to the right of": x}[parts[1]]
    assert change != 0, "neither above nor below"
    return "yes" if change > 0 else "no"


def test_answers_are_those_of_the_scene():
    data, kinds = task("questions"), set()
    for i in range(1500):
        example = data.example(i)
        (scene,) = example.scenes
        assert data.class_names[example.label] == answer(scene, example.text), example
        assert is_article_right(example.text)
        assert scene == Shapes(ShapesConfig()).scene(i)
        kinds.add(question_kind(example.text)[0])
    assert kinds == set(QUESTIONS)
    assert len(set(data.class_names)) == len(data.class_names) == 40


@pytest.mark.slow
def test_kinds_of_questions_have_fixed_shares():
    data = task("questions", seed=3)
    counts = {True: collections.Counter(), False: collections.Counter()}
    for i in range(4000):
        example = data.example(i)
        counts[len(example.scenes[0].things) == 1][question_kind(example.text)[0]] += 1
    twice = ("color", "shape", "place", "exists", "relation")
    weights = {kind: 2 if kind in twice else 1 for kind in QUESTIONS}
    for is_alone, counted in counts.items():
        if is_alone:  # one thing lies to no other
            assert counted["relation"] == 0
        total = sum(w for kind, w in weights.items() if not (is_alone and kind == "relation"))
        n = counted.total()
        for kind, weight in weights.items():
            expected = 0 if is_alone and kind == "relation" else weight / total
            # A few scenes of several things have no way to tell one of them.
            assert abs(counted[kind] / n - expected) < 4 * (expected / n) ** 0.5 + 0.01, kind


def assert_even(counts, least=60, sigma=4.6):
    """`counts` of (what, label) are even over the labels for everything that is frequent."""
    classes = sorted({label for _, label in counts})
    whats = {what for what, _ in counts}
    checked = 0
    for what in whats:
        found = np.array([counts[what, label] for label in classes])
        n, share = found.sum(), 1 / len(classes)
        if n >= least:
            deviation = np.abs(found - n * share).max() / (n * share * (1 - share)) ** 0.5
            assert deviation < sigma, (what, dict(zip(classes, found.tolist(), strict=True)))
            checked += 1
    return checked


def words_of(text):
    """What a reader of the text alone may go by: its words, and pairs of them."""
    words = text.split()
    return {*words, *itertools.pairwise(words)}


@pytest.mark.slow
def test_yes_and_no_are_even_whatever_is_asked():
    data, counts = task("questions", size=20_000, seed=1), collections.Counter()
    for i in range(6000):
        example = data.example(i)
        label = data.class_names[example.label]
        if label in ("yes", "no"):
            kind = question_kind(example.text)[0]
            counts.update(((kind, w), label) for w in (words_of(example.text) | {""}))
    assert assert_even(counts) > 100


ENTAILMENT = (
    (rf"there is an? (?P<one>.+) (?P<place>{PLACE})", True),
    (rf"(?P<place>{PLACE}) there is an? (?P<one>.+)", True),
    (rf"there is no (?P<one>.+) (?P<place>{PLACE})", False),
    (rf"(?P<place>{PLACE}) there is no (?P<one>.+)", False),
    (rf"there is (?P<one>something) (?P<place>{PLACE})", True),
    (rf"there is (?P<one>nothing) (?P<place>{PLACE})", False),
)


def stated(text):
    """Place, what is said to be there, and whether it is (or is not)."""
    pattern, positive = next((p, s) for p, s in ENTAILMENT if re.fullmatch(p, text))
    match = re.fullmatch(pattern, text)
    one = {"something": "thing", "nothing": "thing"}.get(match["one"], match["one"])
    return scenes.PLACES.index(match["place"]), one, positive


def holds(scene, text):
    place, one, positive = stated(text)
    there = [thing for thing in scene.things if thing.place == place]
    return bool(matching(there, one)) == positive


def test_classes_match_the_visible_things():
    data = task("entailment")
    hidden_truths = collections.Counter()
    for i in range(1500):
        example = data.example(i)
        (scene,) = example.scenes
        place, _, _ = stated(example.text)
        truth = holds(scene, example.text)
        if place == example.covered:
            expected = "neutral"
            hides = any(thing.place == place for thing in scene.things)
            hidden_truths[hides, truth] += 1
        else:
            expected = "entailment" if truth else "contradiction"
        assert data.class_names[example.label] == expected
        assert is_article_right(example.text)
        assert example.covered != scene.things[0].place
    # Neutral: something is hidden or not, and the statement is true of it or not.
    assert min(hidden_truths[key] for key in [(h, t) for h in (0, 1) for t in (0, 1)]) > 20


@pytest.mark.slow
def test_the_text_does_not_tell_the_class():
    data, counts, texts = task("entailment", size=20_000), collections.Counter(), []
    for i in range(5000):
        example = data.example(i)
        place, one, positive = stated(example.text)
        template = next(k for k, (p, _) in enumerate(ENTAILMENT) if re.fullmatch(p, example.text))
        told = {*words_of(example.text), f"template {template}", ("place", place)}
        told |= {(template, place), (template, *one.split()[:1]), (positive, *one.split()[-1:])}
        counts.update((what, example.label) for what in told)
        texts.append((told, example.label))
    assert assert_even(counts) > 150
    # Naive Bayes on all of that, learnt on one half, guesses the other half.
    learnt = collections.Counter((w, label) for told, label in texts[:2500] for w in told)
    right = 0
    for told, label in texts[2500:]:
        scores = [sum(np.log(learnt[w, k] + 1) for w in told) for k in range(3)]
        right += int(np.argmax(scores)) == label
    assert abs(right / 2500 - 1 / 3) < 4 * (2 / 9 / 2500) ** 0.5


@pytest.mark.slow
def test_the_picture_alone_does_not_tell_the_class():
    data, counts = task("entailment"), collections.Counter()
    for i in range(4000):
        example = data.example(i)
        (scene,) = example.scenes
        visible = [thing for thing in scene.things if thing.place != example.covered]
        for what in ("covered", example.covered), ("things", len(visible)):
            counts[what, example.label] += 1
        counts[("background", scene.background), example.label] += 1
        counts[("main", scene.things[0].place), example.label] += 1
    assert assert_even(counts) == 9 + 4 + 4 + 9


@pytest.mark.parametrize("resolution", [16, 48, 64])
def test_cover_hides_the_thing_below(resolution):
    data = task("entailment", resolution=resolution)
    hidden = 0
    for i in range(60):
        example, image = data.example(i), data[i]["image"]
        (scene,) = example.scenes
        things = tuple(t for t in scene.things if t.place != example.covered)
        hidden += len(things) < len(scene.things)
        seen = dataclasses.replace(scene, things=things)
        other = entailment.draw_covered(seen, example.covered, resolution)
        np.testing.assert_array_equal(image, other)
        row, column = divmod(example.covered, 3)
        y, x = (round((0.22 + 0.28 * k) * resolution) for k in (row, column))
        half = int(0.12 * resolution)
        patch = image[y - half : y + half, x - half : x + half].reshape(-1, 3)
        assert {tuple(pixel) for pixel in patch.tolist()} == {(70, 70, 70), (200, 200, 200)}
        changed = (image != draw(seen, resolution)).any(-1)
        assert 0 < changed.mean() < 0.1  # the rest is as it would be
    assert hidden > 5


STATEMENTS = {
    "background": r"both pictures have the same background",
    "count": r"both pictures have the same number of shapes",
    "together": r"together there are (\w+) shapes",
    "exactly_one": r"exactly one picture has an? (.+)",
    "both_or_neither": r"either both pictures or neither of them have an? (.+)",
    "colour": r"the largest thing has the same color in both pictures",
    "shape": r"the largest thing has the same shape in both pictures",
    "place": r"the largest thing is in the same place in both pictures",
    "both": r"both pictures have an? (.+)",
    "neither": r"neither picture has an? (.+)",
    "only": r"only the (left|right) picture has an? (.+)",
    "more": r"there are more shapes in the (left|right) picture",
    "backgrounds": r"the background of both pictures is (\w+)",
}


def largest(scene):
    return max(scene.things, key=lambda thing: scenes.SIZES[thing.size])


def facts(kind, parts, scene):
    """The property of one picture on which a statement of this kind depends."""
    if kind in ("background", "backgrounds"):
        return scene.background
    if kind in ("count", "together", "more"):
        return len(scene.things)
    if kind in ("colour", "shape", "place"):
        return getattr(largest(scene), kind)
    return bool(matching(scene.things, parts[-1]))


def is_true(kind, parts, left, right):
    """Whether a statement is true, from the properties of both pictures."""
    if kind in ("background", "count", "colour", "shape", "place", "both_or_neither"):
        return left == right
    if kind == "together":
        return left + right == NUMBERS.index(parts[0])
    if kind == "exactly_one":
        return left + right == 1
    if kind in ("both", "neither"):
        return left == right == (kind == "both")
    if kind == "backgrounds":
        return left == right == parts[0]
    first, other = (left, right) if parts[0] == "left" else (right, left)
    return first > other if kind == "more" else first and not other


def statement(text):
    return next((k, m.groups()) for k, p in STATEMENTS.items() if (m := re.fullmatch(p, text)))


def test_statements_are_true_or_false_of_both_pictures():
    data, kinds = task("two_pictures"), set()
    for i in range(1500):
        example = data.example(i)
        kind, parts = statement(example.text)
        said = [facts(kind, parts, scene) for scene in example.scenes]
        assert data.class_names[example.label] == str(bool(is_true(kind, parts, *said))).lower()
        assert is_article_right(example.text)
        kinds.add(kind)
        for scene in example.scenes:  # what holds of the scenes of captions holds of these
            sizes = [scenes.SIZES[thing.size] for thing in scene.things]
            assert max(sizes[1:], default=0) < sizes[0]
            assert len({thing.place for thing in scene.things}) == len(sizes) <= 4
    assert kinds == set(STATEMENTS) == set(pairs.TEXTS)


@pytest.mark.slow
def test_neither_text_nor_one_picture_reveals_the_truth():
    data, n = task("two_pictures", size=30_000, seed=2), 12_000
    by_text, by_one = collections.Counter(), collections.Counter()
    for i in range(n):
        example = data.example(i)
        kind, parts = statement(example.text)
        by_text.update(((kind, w), example.label) for w in (words_of(example.text) | {""}))
        for side, scene in enumerate(example.scenes):
            # Of a number in the text, and of a background, all that matters is how it compares.
            said = facts(kind, parts, scene)
            given = parts if kind in ("together", "only", "more", "backgrounds") else ()
            key = (kind, side, said, *given[:1])
            by_one[key, example.label] += 1
    assert assert_even(by_text) > 100
    alike = {k: v for k, v in by_one.items() if k[0][0] in pairs.ALIKE}
    assert assert_even(collections.Counter(alike)) > 50
    # The others demand something of each picture, so that one can decide; how often is bounded.
    for kind in pairs.BOTH:
        for side in (0, 1):
            keys = {k for k, _ in by_one if k[:2] == (kind, side)}
            total = sum(by_one[k, label] for k in keys for label in (0, 1))
            best = sum(max(by_one[k, 0], by_one[k, 1]) for k in keys) / total
            assert best < (2 / 3 if kind == "more" else 3 / 4) + 4 * (0.19 / total) ** 0.5, kind


@pytest.mark.parametrize("name", TASKS)
def test_records_hold_the_pictures_and_depend_on_the_index_alone(name):
    some, many = task(name, size=40), task(name, size=9000)
    backwards = {i: many[i] for i in reversed(range(40))}
    for i in range(40):
        record, example = some[i], some.example(i)
        assert record.keys() == backwards[i].keys()
        for key, value in record.items():
            np.testing.assert_array_equal(value, backwards[i][key])
        assert (record["id"], record["texts"], record["label"]) == (
            i,
            (example.text,),
            example.label,
        )
        assert ("second" in record) == (name == "two_pictures")
        if example.covered is None:
            images = [record[key] for key in ("image", "second") if key in record]
            for image, scene in zip(images, example.scenes, strict=True):
                np.testing.assert_array_equal(image, draw(scene, 64))
    with pytest.raises(IndexError, match=r"Example 40 of .*, which has 40"):
        some[40]


@pytest.mark.parametrize("name", TASKS)
def test_streams_of_splits_and_seeds_are_different(name):
    train = task(name)
    for other in (task(name, split="val"), task(name, seed=1)):
        assert train.fingerprint != other.fingerprint
        same = [train.example(i) == other.example(i) for i in range(100)]
        assert sum(same) == 0
    shown = [{str(s) for i in range(300) for s in task(name, split=split).example(i).scenes}
             for split in ("train", "val")]  # fmt: skip
    assert not shown[0] & shown[1]
    assert len({task(n).fingerprint for n in TASKS} | {Shapes(ShapesConfig()).fingerprint}) == 4


def test_streams_of_tasks_are_fixed_for_ever():
    # Numbers in reports are made on these examples: a change here needs another fingerprint.
    texts = [task(name).example(7).text for name in TASKS]
    assert texts == [
        "what is the shape of the small orange thing",
        "there is nothing at the bottom",
        "either both pictures or neither of them have a circle",
    ]


def test_fingerprints_of_captions_are_unchanged_by_tasks():
    assert Shapes(ShapesConfig(seed=3)).fingerprint == (
        "shapes-v1 ShapesConfig(size=100000, seed=3, split='train', wrong=0.0, vague=0.0, "
        "duplicate=0.0, resolution=64)"
    )


def test_tasks_are_opened_by_their_setting():
    for name in TASKS:
        source = open_source(DataConfig(shapes=ShapesConfig(task=name, size=10)))
        assert (source.name, source.class_names) == (f"shapes/{name}/train", CLASS_NAMES[name])
    assert isinstance(open_shapes(ShapesConfig()), Shapes)
    with pytest.raises(ConfigError, match=r"open it with aced\.data\.shapes\.tasks\.open_shapes"):
        Shapes(ShapesConfig(task="questions"))
    with pytest.raises(ConfigError, match=r"shapes\.task='questions' has none; leave them at 0"):
        ShapesConfig(task="questions", wrong=0.1)
