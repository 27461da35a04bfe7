"""Layerwise losses against float64 loops over examples, layers and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.losses import layerwise

B, WORDS, PATCHES, K = 3, 4, 5, 2
REAL = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
# Of two pictures, image and multimodal states have two rows an example, side by side.
SIZES = {"image": (B * K, PATCHES), "unimodal": (B, WORDS + 2), "multimodal": (B * K, WORDS)}


@pytest.fixture(scope="module", name="case")
def _case():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return np.float32(rng.normal(size=shape))

    own = {m: normal(2, *size, 3) for m, size in SIZES.items()}
    other = {m: normal(6, *size, 4) for m, size in SIZES.items()}
    maps = {m: {"kernel": normal(2, 3, 4), "bias": normal(2, 4)} for m in SIZES}
    return own, other, maps


def by_hand(own, other, maps, pairs):
    """{module: loss} as the paper has it: means over layers, and over all that is no padding."""
    seen = {
        "image": lambda i, n: True,
        "unimodal": lambda i, n: n == 0 or (n <= WORDS and REAL[i, n - 1]),  # the last is [CLS]
        "multimodal": lambda i, n: n == 0 or REAL[i, n - 1],
    }
    out = {}
    for module, (rows, tokens) in SIZES.items():
        each = []
        for k, teacher in enumerate(pairs):
            for row in range(rows):
                for n in range(tokens):
                    if seen[module](row // (rows // B), n):
                        p = {name: np.float64(x[k]) for name, x in maps[module].items()}
                        mapped = np.float64(own[module][k, row, n]) @ p["kernel"] + p["bias"]
                        each.append(np.mean((mapped - other[module][teacher, row, n]) ** 2))
        out[module] = np.mean(each)  # every layer has as many tokens
    return out


@pytest.mark.parametrize(("how", "pairs"), [("uniform", (2, 5)), ("top", (4, 5))])
def test_losses_are_those_by_hand(case, how, pairs):
    own, other, maps = case
    tokens = layerwise.tokens_of(jnp.asarray(REAL), PATCHES)
    found = layerwise.errors(*jax.tree.map(jnp.asarray, (own, other, maps)), tokens, how)
    expected = by_hand(own, other, maps, pairs)
    np.testing.assert_allclose(found.means(), [expected[m] for m in tokens], rtol=1e-5)
    assert list(tokens) == ["image", "unimodal", "multimodal"]
    # Pieces of a batch add up to it.
    pieces = [jax.tree.map(lambda x, i=i: x[i : i + 1], found) for i in range(B)]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)
    np.testing.assert_array_equal(joined.means(), found.means())


def test_padding_and_teacher_have_no_gradient(case):
    own, other, maps = jax.tree.map(jnp.asarray, case)
    tokens = layerwise.tokens_of(jnp.asarray(REAL), PATCHES)

    def loss(own, other):
        return layerwise.errors(own, other, maps, tokens).means().sum()

    of_own, of_other = jax.grad(loss, argnums=(0, 1))(own, other)
    assert all(not np.any(x) for x in jax.tree.leaves(of_other))
    moved = np.abs(np.asarray(of_own["unimodal"])).sum(axis=(0, 3)) > 0
    start = np.ones((B, 1), bool)
    np.testing.assert_array_equal(moved, np.concatenate([start, REAL, ~start], axis=1))
    moved = np.abs(np.asarray(of_own["multimodal"])).sum(axis=(0, 3)) > 0
    np.testing.assert_array_equal(moved[::2], np.concatenate([start, REAL[:, :-1]], axis=1))
    np.testing.assert_array_equal(moved[::2], moved[1::2])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (12, 24, tuple(range(1, 24, 2))),
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (3, 12, (3, 7, 11)),
        (5, 12, (1, 3, 6, 8, 11)),
        (4, 4, (0, 1, 2, 3)),
        (1, 7, (6,)),
    ],
)
def test_layers_are_paired_evenly_and_the_last_with_the_last(student, teacher, expected):
    assert layerwise.layer_map(student, teacher) == expected
    assert layerwise.layer_map(student, teacher, "top") == tuple(range(teacher - student, teacher))
