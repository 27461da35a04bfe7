"""Near-duplicates found by bands are those that comparing all pairs finds."""

import json
import math

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.testing.util import assert_that, equal_to

from aced.prepare import statistics
from aced.prepare.blocks import Facts, pack, unpack
from aced.prepare.config import PrepareConfig
from aced.prepare.duplicates import SIGHT, drop_near_duplicates, earliest, in_words
from aced.prepare.miniatures import LARGEST, MEAN


def sights(count, seed=0):
    """Of which many are equal or near: chains from a few starts, by bits and by colours."""
    rng = np.random.default_rng(seed)
    out = np.zeros(count, SIGHT)
    for i in range(count):
        out[i] = out[rng.integers(i)] if i >= 6 else out[i]
        if i < 6:
            out[i]["look"], out[i]["miniature"] = (
                rng.integers(0, 1 << 63),
                rng.integers(0, 256, 384),
            )
            out[i]["width"], out[i]["height"] = 90, 60
            continue
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            out[i]["look"] ^= np.uint64(1 << int(bit))
        if rng.random() < 0.7:  # a little noise, or another colour in one place
            noise = rng.integers(-2, 3, 384) if rng.random() < 0.7 else 40 * (np.arange(384) == 9)
            out[i]["miniature"] = np.clip(out[i]["miniature"] + noise, 0, 255)
        if rng.random() < 0.1:
            out[i]["width"] = rng.choice([30, 45, 60])
    return rng.permutation(out)


def is_copy(one, other, limit):
    """By the definition, one place after the other."""
    if bin(int(one["look"] ^ other["look"])).count("1") > limit:
        return False
    (w, h), (w2, h2) = ((int(of["width"]), int(of["height"])) for of in (one, other))
    if abs(w * h2 - h * w2) > w + h + w2 + h2:
        return False
    return max(apart(one, other)[1] / LARGEST, apart(one, other)[0] / MEAN) <= 1


def apart(one, other):
    difference = (one["miniature"].astype(float) - other["miniature"].astype(float)) / 255
    found = []
    for y in range(16):
        for x in range(16):
            colour = 256 + 2 * (8 * (y // 2) + x // 2)
            parts = difference[[16 * y + x, colour, colour + 1]]
            found.append(math.sqrt(sum(part * part for part in parts)))
    return round(sum(found) / 256, 4), round(max(found), 4)


def by_all_pairs(values, limit):
    """For each: None, or the earliest equal one, or else the earliest that it is a copy of."""
    out = []
    for i, value in enumerate(values):
        equal = [j for j in range(i) if values[j] == value]
        out.append(
            min(equal, default=None)
            if equal
            else next((j for j in range(i) if is_copy(value, values[j], limit)), None)
        )
    return out


def facts(line, sight):
    return Facts(
        key=f"{line}.png",
        texts=[f"caption {line}", "shared"],
        kinds=["given", "given"],
        label=None,
        is_noisy=None,
        is_clean=False,
        extra={},
        line=line,
        second=None,
        answers=[],
        block="0",
        offset=10 * line,
        size=10,
        thumbnail_size=0,
        second_size=0,
        crc=0,
        sha256=bytes(32),
        width=int(sight["width"]),
        height=int(sight["height"]),
        anew=False,
        look=sight["look"].tobytes(),
        miniature=sight["miniature"].tobytes(),
    )


@pytest.mark.parametrize("cells", [1 << 21, 700])
def test_the_earliest_copy(monkeypatch, cells):
    monkeypatch.setattr("aced.prepare.duplicates._CELLS", cells)  # 700: a few rows each
    values = sights(120)
    wanted = [
        next((j for j in range(i) if is_copy(value, values[j], 4)), -1)
        for i, value in enumerate(values)
    ]
    assert 20 < sum(found >= 0 for found in wanted) < 110
    assert earliest(values, 4).tolist() == wanted
    assert earliest(values[:0], 4).tolist() == []


@pytest.mark.parametrize("limit", [0, 3, 7])
def test_dropped_images_match_a_comparison_of_all_pairs(limit):
    values = sights(80, seed=limit)
    expected = by_all_pairs(values, limit)
    assert 10 < sum(found is not None for found in expected) < 75

    def root(i):
        return i if expected[i] is None else root(expected[i])

    def between(i):
        bits = bin(int(values[i]["look"] ^ values[expected[i]]["look"])).count("1")
        return bits, *apart(values[i], values[expected[i]])

    left_out = [i for i, found in enumerate(expected) if found is not None]
    texts = {i: [f"caption {i}", "shared"] for i, found in enumerate(expected) if found is None}
    for i in left_out:
        texts[root(i)].append(f"caption {i}")
    dropped = [
        (f"{i}.png", "near_duplicate", f"{in_words(between(i))} from {expected[i]}.png")
        for i in left_out
    ]
    repeated = [(key, "repeated_caption", "shared") for key, _, _ in dropped]
    config = PrepareConfig("i", "c.csv", "o", near_duplicates=limit, near_duplicate_captions=True)

    def listed(entry):
        fields = json.loads(entry[2])
        return fields["image"], entry[1], fields["detail"]

    order = np.random.default_rng(1).permutation(len(values))  # of the work; it has no influence
    images = [pack(facts(int(i), values[i])) for i in order]
    with beam.Pipeline(runner=fn_runner.FnApiRunner()) as pipeline:
        images = pipeline | beam.Create(images)
        kept, rejected, pairs = drop_near_duplicates(config, images)
        shown = statistics.least_alike(images, pairs)
        kept = kept | beam.Map(lambda packed: (unpack(packed).line, unpack(packed).texts))
        assert_that(kept, equal_to(list(texts.items())), "kept")
        assert_that(rejected | beam.Map(listed), equal_to(dropped + repeated), "rejected")
        marks = pairs | beam.Map(lambda pair: (pair[0][0], pair[1][0], pair[1][3], pair[2]))
        wanted = [(i, expected[i], 10 * expected[i], between(i)) for i in left_out]
        assert_that(marks, equal_to(wanted), "pairs")
        first = sorted(left_out, key=lambda i: (between(i)[1:], i))[-statistics.PAIRS :][::-1]
        named = [
            (*((marked(j), [f"caption {j}", "shared"]) for j in (i, expected[i])), between(i))
            for i in first
        ]
        assert_that(shown, equal_to([[(*two, in_words(far)) for *two, far in named]]), "shown")


def marked(line):
    """What is shown of an image: key, block, offset, size."""
    return f"{line}.png", "0", 10 * line, 10
