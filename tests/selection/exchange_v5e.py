"""Run by test_exchange.py in a process of its own: compiles the exchange for 8 TPU v5e chips."""

import jax
import jax.numpy as jnp
from crossing import crossing
from jax.experimental import topologies

from aced.parallel import mesh as meshes
from aced.selection.exchange import exchange

B, SIZE = 640 * 8, 128 * 8  # the rows that a chip holds of JEST's 163,840 and 32,768 on 256 chips


def main():
    devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
    mesh = meshes.make_mesh(devices)
    by_example, everywhere = meshes.by_example(mesh), meshes.replicated(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((B, 256, 256, 3), jnp.uint8, sharding=by_example),
        "text": jax.ShapeDtypeStruct((B, 64), jnp.int32, sharding=by_example),
    }
    ids = jax.ShapeDtypeStruct((SIZE,), jnp.int32, sharding=everywhere)
    with jax.set_mesh(mesh):
        compiled = jax.jit(exchange, out_shardings=by_example).lower(batch, ids).compile()
    buffer = 32 * 256 * 256 * 3
    pixels = {(name, count) for name, dtype, count in crossing(compiled.as_text()) if dtype == "u8"}
    assert pixels == {("collective-permute", buffer)}, pixels
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 4 * buffer, temporary


if __name__ == "__main__":
    main()
