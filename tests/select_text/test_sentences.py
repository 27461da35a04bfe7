import hashlib

import numpy as np
import pytest

from aced.select_text import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\t b\u00a0\u2003c \r\n", "a b c"),
        ("cafe\u0301", "caf\u00e9"),
        ("A cat", "A cat"),  # case stays
        ("\u212b", "\u00c5"),
        (" \u3000 ", ""),
    ],
)
def test_normal_form(text, expected):
    assert sentences.normalise(text) == expected
    assert sentences.normalise(expected) == expected


def test_hashes_are_the_first_bits_of_blake2b_and_survive_being_cut():
    texts = ["a", "\u6c34", "x" * 5000]
    found = sentences.hashes(texts)
    expected = [hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts]
    assert [int(h).to_bytes(8, "little") for h in found] == expected
    np.testing.assert_array_equal(sentences.whole(sentences.halves(found)), found)
    assert sentences.hashes([]).shape == (0,)


def test_splitmix_matches_the_publication():
    # The first numbers of the generator that is seeded with 1234567, as its authors print them.
    state, numbers = 1234567, []
    for _ in range(3):
        numbers.append(int(sentences._mix(np.array([state], np.uint64))[0]))
        state += 0x9E3779B97F4A7C15
        state %= 1 << 64
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]
