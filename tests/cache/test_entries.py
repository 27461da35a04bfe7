"""Shards of a cache: flipped bits are found, or fall where nothing is."""

import numpy as np
import pytest

from aced.cache import entries

ROW_BYTES = 96


@pytest.mark.slow
def test_every_flipped_bit_of_a_shard_is_found_or_changes_nothing(tmp_path):
    path, rng = tmp_path / "embeddings-00000-of-00001.array_record", np.random.default_rng(0)
    rows = [rng.integers(0, 256, (1 + i % 3, ROW_BYTES), dtype=np.uint8) for i in range(200)]
    writer = entries.EntryWriter(path, 2 * ROW_BYTES)
    for i, row in enumerate(rows):
        writer.write(i, row)
    writer.close()
    good = path.read_bytes()
    ends = [*range(200), *range(len(good) - 200, len(good))]  # headers, and the index
    found = 0
    for place in [*ends, *rng.integers(0, len(good), 200).tolist()]:
        data = bytearray(good)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            got = entries.EntryReader(path, 0, len(rows), ROW_BYTES).read(range(len(rows)))
        except ValueError:
            found += 1
            continue
        for a, b in zip(got, rows, strict=True):
            np.testing.assert_array_equal(a, b)
    assert found > 100
