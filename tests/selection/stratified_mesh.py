"""Run by test_mesh.py in a process with 8 CPU devices: what crosses them, and what is chosen."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aced.embeddings import Embeddings
from aced.selection import SelectionConfig, select, take

B, D, SIZE, STRATA = 1024, 48, 256, 8
COLLECTIVES = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def embeddings(seed: int, d: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    zimg, ztxt = rng.normal(size=(2, B, d)).astype(np.float32)
    zimg, ztxt = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, zimg + ztxt))
    return Embeddings(
        zimg=jnp.array(zimg), ztxt=jnp.array(ztxt), scale=jnp.array(10.0), bias=jnp.array(-6.0)
    )


def collectives(hlo: str) -> list[tuple[str, str, int]]:
    """Name, element type and number of elements of everything that devices exchange."""
    return [
        (name, dtype, math.prod(int(size) for size in dims.split(",") if size))
        for shapes, name in COLLECTIVES.findall(hlo)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]


def main():
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_example = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = Embeddings(zimg=by_example, ztxt=by_example, scale=everywhere, bias=everywhere)
    learner, reference = embeddings(0, D), embeddings(1, 2 * D)
    image = np.random.default_rng(2).integers(0, 256, (B, 8, 8, 3), np.uint8)
    # XLA's all-reduce of pixels, which `take` is there to avoid, is what the pattern must find.
    naive = jax.jit(lambda x, ids: x[ids], in_shardings=(by_example, by_example))
    hlo = naive.lower(jnp.array(image), jnp.arange(SIZE)).compile().as_text()
    assert any(dtype == "u8" for _, dtype, _ in collectives(hlo)), collectives(hlo)

    for loss, method, start in [
        ("sigmoid", "joint", "alone"),
        ("softmax", "joint", "alone"),
        ("softmax", "joint", "super_batch"),
        ("sigmoid", "independent", "alone"),
        ("softmax", "independent", "alone"),
    ]:
        config = SelectionConfig(
            filter_ratio=0.75, chunks=8, strata=STRATA, method=method, softmax_start=start, tile=100
        )

        def choose(key, learner, reference, image, config=config, loss=loss):
            selection = select(key, learner, reference, config, loss=loss, size=SIZE)
            chosen = take(image, selection.ids, STRATA)
            return selection.ids, chosen

        key = jax.random.key(3)
        args = key, learner, reference, jnp.array(image)
        alone_ids, _ = jax.jit(choose)(*args)
        sharded = jax.jit(
            choose,
            in_shardings=(everywhere, shardings, shardings, by_example),
            out_shardings=(by_example, by_example),
        )
        placed = jax.device_put(args, (everywhere, shardings, shardings, by_example))
        compiled = sharded.lower(*placed).compile()
        ids, chosen = compiled(*placed)
        exchanged = collectives(compiled.as_text())
        assert exchanged, "the pattern does not find this XLA's collectives"
        for name, dtype, count in exchanged:
            # Nothing but one chunk's embeddings and one number per candidate; B x D is 49,152.
            assert dtype == "f32", (name, dtype, count)
            assert count <= max(SIZE // config.chunks * 2 * D, B), (name, dtype, count)
        np.testing.assert_array_equal(ids, alone_ids)
        np.testing.assert_array_equal(chosen, image[np.asarray(ids)])


if __name__ == "__main__":
    main()
