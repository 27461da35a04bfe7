"""Near-duplicates found by bands are those that comparing all pairs finds."""

import json

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.testing.util import assert_that, equal_to

from aced.prepare.config import PrepareConfig
from aced.prepare.facts import Facts, pack, unpack
from aced.prepare.near_duplicates import drop_near_duplicates, earliest


def looks(count, seed=0):
    """Hashes of which many are equal or near: chains of flipped bits from a few starts."""
    rng = np.random.default_rng(seed)
    out = [int(x) for x in rng.integers(0, 1 << 63, 8)]
    while len(out) < count:
        look = out[rng.integers(len(out))]
        for bit in rng.choice(64, rng.integers(0, 6), replace=False):
            look ^= 1 << int(bit)
        out.append(look)
    return [int(x) for x in rng.permutation(np.array(out, np.uint64))]


def by_all_pairs(values, limit):
    """For each: None, or the earliest equal one, or else the earliest within `limit`; and bits."""
    out = []
    for i, value in enumerate(values):
        near = [(bin(value ^ v).count("1"), j) for j, v in enumerate(values[:i])]
        equal = [(j, bits) for bits, j in near if bits == 0]
        close = [(j, bits) for bits, j in near if bits <= limit]
        out.append(min(equal or close, default=None))
    return out


def facts(line, look):
    return Facts(
        key=f"{line}.png",
        texts=[f"caption {line}", "shared"],
        label=None,
        is_noisy=None,
        extra={},
        line=line,
        second=None,
        block=0,
        offset=10 * line,
        size=10,
        thumbnail_size=0,
        second_size=0,
        sha256=bytes(32),
        width=1,
        height=1,
        anew=False,
        look=look.to_bytes(8),
    )


def test_earliest_in_pieces(monkeypatch):
    monkeypatch.setattr("aced.prepare.near_duplicates._CELLS", 700)  # several rows at a time
    values = looks(150)
    found, bits = earliest(np.array(values, np.uint64), 4)
    for i, value in enumerate(values):
        near = [j for j in range(i) if bin(value ^ values[j]).count("1") <= 4]
        assert found[i] == min(near, default=-1)
        assert bits[i] == (bin(value ^ values[near[0]]).count("1") if near else 0)


@pytest.mark.parametrize("limit", [0, 3, 7])
def test_what_is_left_out_is_what_all_pairs_say(limit):
    values = looks(250, seed=limit)
    expected = by_all_pairs(values, limit)
    assert 20 < sum(found is not None for found in expected) < 250

    def root(i):
        return i if expected[i] is None else root(expected[i][0])

    texts = {i: [f"caption {i}", "shared"] for i, found in enumerate(expected) if found is None}
    for i, found in enumerate(expected):
        if found is not None:
            texts[root(i)].append(f"caption {i}")
    dropped = [
        (f"{i}.png", "near_duplicate", f"{found[1]} bits from {found[0]}.png")
        for i, found in enumerate(expected)
        if found is not None
    ]
    repeated = [(key, "repeated_caption", "shared") for key, _, _ in dropped]
    config = PrepareConfig("i", "c.csv", "o", near_duplicates=limit, near_duplicate_captions=True)

    def listed(entry):
        fields = json.loads(entry[2])
        return fields["image"], entry[1], fields["detail"]

    order = np.random.default_rng(1).permutation(len(values))  # of the work; it has no influence
    images = [pack(facts(int(i), values[i])) for i in order]
    with beam.Pipeline(runner=fn_runner.FnApiRunner()) as pipeline:
        kept, rejected, pairs = drop_near_duplicates(config, pipeline | beam.Create(images))
        kept = kept | beam.Map(lambda packed: (unpack(packed).line, unpack(packed).texts))
        assert_that(kept, equal_to(list(texts.items())), "kept")
        assert_that(rejected | beam.Map(listed), equal_to(dropped + repeated), "rejected")
        marks = pairs | beam.Map(lambda pair: (pair[0][0], pair[1][0], pair[1][3], pair[2]))
        wanted = [(i, f[0], 10 * f[0], f[1]) for i, f in enumerate(expected) if f is not None]
        assert_that(marks, equal_to(wanted), "pairs")
