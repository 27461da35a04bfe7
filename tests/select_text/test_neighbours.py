import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.parallel import mesh as meshes
from aced.select_text import neighbours
from aced.select_text.neighbours import Block, Neighbours
from aced.select_text.sentences import halves, whole

D = 12


def search_of(devices, *, images, k, block, tile):
    """A search whose sentences are embedded by a table: ids are its rows."""
    mesh = meshes.make_mesh(jax.devices()[:devices])

    def embed(table, ids):
        return table[ids[:, 0]]

    return neighbours.build(embed, mesh, images=images, k=k, block=block, tile=tile), mesh


def run(search, mesh, z, table, hashes, stream):
    """Shows the sentences `stream` (rows of the table), block by block."""
    features = np.zeros((search.rows, D), np.float32)
    features[: len(z)] = z
    with jax.set_mesh(mesh):
        features = jax.device_put(features, meshes.by_example(mesh))
        found = search.empty()
        for start in range(0, len(stream), search.block):
            part = stream[start : start + search.block]
            filling = search.block - len(part)
            rows = np.concatenate([part, np.zeros(filling, int)]).astype(np.int32)
            block = Block(
                text=jnp.asarray(rows[:, None]),
                hash=jnp.asarray(halves(hashes[rows])),
                valid=jnp.arange(search.block) < len(part),
            )
            found = search.step(found, jnp.asarray(table), features, block)
    ids = whole(np.stack([np.asarray(found.upper), np.asarray(found.lower)], -1))
    return np.asarray(found.score)[: len(z)], ids[: len(z)], int(found.broken)


def by_sorting(z, table, hashes, stream, k):
    """Distinct sentences in float64, sorted whole, by similarity and then by hash."""
    rows = np.unique(stream)
    scores = z.astype(np.float64) @ table[rows].astype(np.float64).T
    order = np.array([np.lexsort((hashes[rows], -line))[:k] for line in np.round(scores, 12)])
    return np.take_along_axis(scores, order, axis=1), hashes[rows][order]


@pytest.fixture
def problem():
    """37 images and 150 sentences that come 400 times, repeated within blocks and across them."""
    rng = np.random.default_rng(0)
    z, table = (rng.normal(size=(n, D)).astype(np.float32) for n in (37, 150))
    hashes = rng.integers(0, 2**64, 150, dtype=np.uint64)
    stream = np.concatenate([rng.permutation(150), rng.integers(0, 150, 250)])
    return z, table, hashes, stream


@pytest.mark.parametrize(
    ("devices", "k", "block", "tile"),
    [(1, 5, 64, 16), (8, 5, 64, 16), (8, 1, 400, 1000), (2, 7, 50, 16), (4, 9, 4, 3)],
)
def test_the_lists_are_those_of_full_sorts(problem, devices, k, block, tile):
    search, mesh = search_of(devices, images=37, k=k, block=block, tile=tile)
    score, ids, broken = run(search, mesh, *problem)
    expected_score, expected = by_sorting(*problem, k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(score, expected_score, rtol=1e-5)
    assert broken == 0


@pytest.mark.parametrize("block", [16, 80])
def test_of_equally_near_sentences_the_smaller_hashes_stay_in_any_order(problem, block):
    z, table, hashes, _ = problem
    # Small whole numbers: sums are exact, and every sentence has many that are equally near.
    rng = np.random.default_rng(1)
    z, table = (rng.integers(-1, 2, x.shape).astype(np.float32) for x in (z, table))
    table[1::2] = table[::2]
    search, mesh = search_of(4, images=37, k=6, block=block, tile=16)
    results = []
    for seed in range(3):
        stream = np.random.default_rng(seed).permutation(np.repeat(np.arange(150), 2))
        score, ids, _ = run(search, mesh, z, table, hashes, stream)
        expected_score, expected = by_sorting(z, table, hashes, stream, 6)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(score, expected_score)
        results.append(ids)
    assert len(np.unique(expected_score)) < 20  # ties are the rule here
    np.testing.assert_array_equal(results[0], results[2])


def test_fewer_sentences_than_places_leave_them_empty(problem):
    z, table, hashes, _ = problem
    search, mesh = search_of(2, images=37, k=5, block=8, tile=4)
    score, ids, _ = run(search, mesh, z, table, hashes, np.array([3, 7, 3]))
    assert (score[:, 2:] == -np.inf).all()
    assert (np.sort(ids[:, :2]) == np.sort(hashes[[3, 7]])).all()


def test_sentences_without_finite_embedding_are_counted_and_not_chosen(problem):
    z, table, hashes, stream = problem
    table[4], table[9] = np.nan, np.inf
    search, mesh = search_of(4, images=37, k=5, block=32, tile=16)
    score, ids, broken = run(search, mesh, z, table, hashes, stream)
    is_fine = ~np.isin(stream, (4, 9))
    _, expected = by_sorting(z, table, hashes, stream[is_fine], 5)
    np.testing.assert_array_equal(ids, expected)
    assert broken == (~is_fine).sum()
    assert np.isfinite(score).all()


def test_nothing_of_the_size_images_by_sentences_is_held():
    """Temporaries have the size of some tiles, for any number of images and size of the block."""
    temporary = []
    for images, block in ((1 << 14, 1 << 12), (1 << 16, 1 << 14)):
        search, mesh = search_of(1, images=images, k=4, block=block, tile=512)
        with jax.set_mesh(mesh):
            lowered = search.step.lower(
                Neighbours(
                    score=jax.ShapeDtypeStruct((images, 4), jnp.float32),
                    upper=jax.ShapeDtypeStruct((images, 4), jnp.uint32),
                    lower=jax.ShapeDtypeStruct((images, 4), jnp.uint32),
                    broken=jax.ShapeDtypeStruct((), jnp.uint32),
                ),
                jax.ShapeDtypeStruct((1000, D), jnp.float32),
                jax.ShapeDtypeStruct((search.rows, D), jnp.float32),
                Block(
                    text=jax.ShapeDtypeStruct((block, 1), jnp.int32),
                    hash=jax.ShapeDtypeStruct((block, 2), jnp.uint32),
                    valid=jax.ShapeDtypeStruct((block,), jnp.bool_),
                ),
            )
            memory = lowered.compile().memory_analysis()
        state = 3 * 4 * 4 * images
        assert memory.alias_size_in_bytes >= state  # donated
        temporary.append(memory.temp_size_in_bytes)
        # The block's embeddings and hashes, the new lists, and a handful of 512 x 512 tiles.
        assert temporary[-1] < 3 * state + 6 * 4 * block * (D + 8) + 8 * 4 * 512 * 512
        assert temporary[-1] < images * block / 4  # a sixteenth of all similarities
