import numpy as np

from aced.select_text import sentences
from aced.select_text.sentences import Sample

# The 99.9 % quantile of chi-square with 59 degrees of freedom.
CHI_SQUARE = 98.3


def test_every_distinct_sentence_is_equally_likely():
    texts = [f"sentence {i}" for i in range(60)]
    hashes = sentences.hashes(texts)
    # A third of them comes ten times as often: that must not matter.
    stream = np.concatenate([hashes, np.tile(hashes[:20], 9)])
    draws, size = 2000, 12
    counts = dict.fromkeys(hashes.tolist(), 0)
    for seed in range(draws):
        sample = Sample(size, seed)
        sample.add(stream)
        for chosen in sample.hashes().tolist():
            counts[chosen] += 1
    expected = draws * size / len(texts)
    # Drawn without replacement: the variance of a count is that of size / 60, not Poisson's.
    scale = (1 - size / len(texts)) * len(texts) / (len(texts) - 1)
    chi_square = sum((n - expected) ** 2 for n in counts.values()) / expected / scale
    assert chi_square < CHI_SQUARE
    assert sum(counts.values()) == draws * size


def test_neither_blocks_nor_order_nor_parts_matter():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    stream = np.concatenate([hashes, hashes[:1000]])
    whole = Sample(5000, 7)
    whole.add(stream)
    parts = [Sample(5000, 7) for _ in range(3)]
    for i, block in enumerate(np.array_split(rng.permutation(stream), 50)):
        parts[i % 3].add(block)
    merged = Sample(5000, 7)
    for part in parts:
        merged.add(part.hashes())
    np.testing.assert_array_equal(merged.hashes(), whole.hashes())
    assert len(np.unique(whole.hashes())) == 5000
    smaller = Sample(300, 7)
    smaller.add(stream)
    np.testing.assert_array_equal(smaller.hashes(), whole.hashes()[:300])
