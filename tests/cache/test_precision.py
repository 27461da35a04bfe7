"""Rows as bytes: torch-free oracles by hand, and what is said of the error."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from aced.cache import precision


def rows(n=50, d=24, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, d))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("kind", "size"), [("float32", 3072), ("bfloat16", 1536), ("int8", 772)])
def test_bytes_of_a_row_of_768(kind, size):
    assert precision.row_bytes(kind, 768) == size
    assert precision.encode(rows(3, 768), kind).shape == (3, size)


def test_float32_is_exact():
    z = rows()
    np.testing.assert_array_equal(precision.decode(precision.encode(z, "float32"), "float32"), z)


def test_bfloat16_rounds_as_jax_does():
    z = rows()
    found = precision.decode(precision.encode(z, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(found, jnp.asarray(z).astype(jnp.bfloat16).astype(jnp.float32))


def test_int8_by_hand():
    z = rows()
    data = precision.encode(z, "int8")
    for row, found in zip(z, data, strict=True):
        (scale,) = struct.unpack("<f", found[:4].tobytes())
        assert scale == pytest.approx(max(abs(float(x)) for x in row) / 127, rel=1e-6)
        levels = struct.unpack("24b", found[4:].tobytes())
        assert list(levels) == [round(float(x) / scale) for x in row]
    found = precision.decode(data, "int8")
    assert np.abs(found - z).max() <= (np.abs(z).max(1) / 254).max() * (1 + 1e-5)


def test_int8_of_zeros_is_zeros():
    zeros = np.zeros((2, 8), np.float32)
    np.testing.assert_array_equal(precision.decode(precision.encode(zeros, "int8"), "int8"), zeros)


def test_errors_are_those_of_all_rows_however_they_come():
    images, texts = rows(seed=1), rows(seed=2)
    whole, halves, other = precision.Errors(), precision.Errors(), precision.Errors()
    whole.add(images, texts)
    halves.add(images[:20], texts[:20])
    other.add(images[20:], texts[20:])
    halves.merge(precision.Errors(other.sums))
    for name, kinds in whole.summary().items():
        both = np.concatenate([images, texts])
        stored = precision.decode(precision.encode(both, name), name).astype(np.float64)
        off = np.sqrt(((stored - both) ** 2).sum(1))
        cosine = np.abs((stored[:50] * stored[50:]).sum(1) - (images * texts).sum(1))
        for kind, expected in (("distance", off), ("cosine", cosine)):
            assert kinds[kind]["rms"] == pytest.approx(np.sqrt((expected**2).mean()), abs=1e-7)
            assert kinds[kind]["max"] == pytest.approx(expected.max(), abs=1e-7)
            for key in ("rms", "max"):
                same = halves.summary()[name][kind][key]
                assert same == pytest.approx(kinds[kind][key], rel=1e-9)
    assert whole.summary()["float32"]["distance"]["max"] == 0
    assert whole.summary()["bfloat16"]["distance"]["max"] < 2**-8


def test_one_tower_has_no_cosine_error():
    errors = precision.Errors()
    errors.add(rows())
    assert set(errors.summary()["int8"]) == {"distance"}
