"""Selection over 8 devices: what is chosen, and what crosses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossing import crossing

from aced.outputs import Embeddings
from aced.parallel import mesh as meshes
from aced.selection import SelectionConfig, select, take

B, D, SIZE = 1024, 48, 256


def embeddings(seed: int, d: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    zimg, ztxt = rng.normal(size=(2, B, d)).astype(np.float32)
    zimg, ztxt = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, zimg + ztxt))
    values = {"zimg": zimg, "ztxt": ztxt, "scale": np.float32(10.0), "bias": np.float32(-6.0)}
    return jax.tree.map(jnp.asarray, values)


def pixels() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (B, 8, 8, 3), np.uint8)


def test_the_pattern_finds_pixels_where_they_move():
    mesh = meshes.make_mesh()
    image = jax.device_put(pixels(), meshes.by_example(mesh))
    naive = jax.jit(lambda x, ids: x[ids], out_shardings=meshes.by_example(mesh))
    hlo = naive.lower(image, jnp.arange(SIZE)).compile().as_text()
    assert any(dtype == "u8" for _, dtype, _ in crossing(hlo))


@pytest.mark.parametrize("strata", [1, 8])
@pytest.mark.parametrize(
    ("loss", "method", "changes"),
    [
        ("sigmoid", "joint", {}),
        ("sigmoid", "joint", {"normalization": "perplexity"}),
        ("sigmoid", "joint", {"false_negative_margin": 0.2}),
        ("softmax", "joint", {}),
        ("softmax", "independent", {"normalization": "std", "gain": 3.0}),
    ],
)
def test_eight_devices_choose_as_one(loss, method, changes, strata):
    mesh = meshes.make_mesh()
    by_example, everywhere = meshes.by_example(mesh), meshes.replicated(mesh)
    config = SelectionConfig(
        filter_ratio=0.75, chunks=8, strata=strata, method=method, tile=100, **changes
    )

    def choose(key, learner, reference, image):
        models = Embeddings(**learner), Embeddings(**reference)
        ids = select(key, *models, config, loss=loss, size=SIZE).ids
        return ids, take(image, jnp.sort(ids), strata)

    args = jax.random.key(3), embeddings(0, D), embeddings(1, 2 * D), pixels()
    alone_ids, _ = jax.jit(choose)(*args)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda x: jax.device_put(x, by_example if x.ndim else everywhere), args
        )
        sharded = jax.jit(choose, out_shardings=(everywhere, by_example))
        compiled = sharded.lower(*placed).compile()
        ids, chosen = compiled(*placed)
    np.testing.assert_array_equal(ids, alone_ids)
    np.testing.assert_array_equal(chosen, args[-1][np.sort(ids)])

    # Embeddings: those of one chunk, of the 49,152 of a model; and a few numbers a candidate.
    allowed = max(SIZE // config.chunks * 2 * D, B * (1 if strata == 8 else config.chunks))
    exchanged = crossing(compiled.as_text())
    assert exchanged
    for name, dtype, count in exchanged:
        if dtype == "u8":  # exchanged between neighbours, a buffer at a time
            assert strata == 1, (name, count)
            assert name == "collective-permute", count
            assert count == SIZE // 8 // 4 * 8 * 8 * 3
        else:
            assert count <= allowed, (name, dtype, count)
