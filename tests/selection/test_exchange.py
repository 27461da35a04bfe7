"""The exchange equals indexing for any choice, and consists of neighbour permutations alone."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossing import crossing

from aced.config import ConfigError
from aced.parallel import mesh as meshes
from aced.preflight import COMPILER_ENVIRONMENT
from aced.selection.exchange import exchange

MESHES = {
    "data": meshes.MeshConfig(),
    "data, fsdp": meshes.MeshConfig(fsdp=4),
    "data, tensor": meshes.MeshConfig(tensor=2),
    "data, fsdp, tensor": meshes.MeshConfig(fsdp=2, tensor=2),
    "tensor": meshes.MeshConfig(tensor=8),
}


def batch(candidates: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(candidates)
    return {
        "image": rng.integers(0, 256, (candidates, 3, 2, 3), np.uint8),
        "zimg": rng.normal(size=(candidates, 5)).astype(np.float32),
        "is_noisy": rng.integers(0, 2, candidates).astype(bool),
        "id": np.arange(candidates, dtype=np.int32),
    }


def choices(candidates: int, size: int, shards: int) -> dict[str, np.ndarray]:
    """Ascending ids of several kinds."""
    rng = np.random.default_rng(size)
    owned = candidates // shards
    of_one = np.arange(shards // 2 * owned, (shards // 2 + 1) * owned)
    others = np.setdiff1d(np.arange(candidates), of_one)
    return {
        "random": np.sort(rng.permutation(candidates)[:size]),
        "the first": np.arange(size),
        "the last": np.arange(candidates - size, candidates),
        # As many as there are, and the rest from the far ends.
        "of one device": np.sort(np.concatenate([of_one, others[::-1]])[:size]),
        "every so many": np.arange(size) * (candidates // size),
        "both ends": np.r_[: size // 2, candidates - size + size // 2 : candidates],
    }


# Rows of a device and how many it ends up with: odd, one, more than one buffer, all.
@pytest.mark.parametrize(
    ("name", "owned", "share"),
    [("data", 9, 3), ("data", 7, 1), ("data", 40, 8), ("data", 6, 6)]
    + [(name, 29, 17) for name in MESHES],
)
def test_exchange_is_indexing(name, owned, share):
    mesh = meshes.make_mesh(config=MESHES[name])
    by_example = meshes.by_example(mesh)
    shards = meshes.example_shards(mesh)
    tree = batch(owned * shards)
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, by_example)
        run = jax.jit(exchange)
        for ids in choices(owned * shards, share * shards, shards).values():
            out = run(placed, jnp.asarray(ids, jnp.int32))
            for key, x in tree.items():
                assert out[key].sharding.is_equivalent_to(by_example, x.ndim)
                np.testing.assert_array_equal(out[key], x[ids])


def test_all_rows_of_one_device():
    # One device owns all that are chosen: everything starts there, and most of it goes far.
    mesh = meshes.make_mesh()
    tree = batch(8 * 24)
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, meshes.by_example(mesh))
        for device in (0, 3, 7):
            ids = device * 24 + np.arange(24)
            out = jax.jit(exchange)(placed, jnp.asarray(ids, jnp.int32))
            for key, x in tree.items():
                np.testing.assert_array_equal(out[key], x[ids])


def test_without_a_mesh_it_is_indexing():
    tree, ids = batch(12), np.array([0, 3, 4, 11], np.int32)
    out = jax.jit(exchange)(tree, ids)
    for key, x in tree.items():
        np.testing.assert_array_equal(out[key], x[ids])


def test_only_neighbours_exchange_and_only_buffers():
    mesh = meshes.make_mesh()
    tree = batch(8 * 64)
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, meshes.by_example(mesh))
        compiled = jax.jit(exchange).lower(placed, jnp.arange(8 * 16, dtype=jnp.int32)).compile()
    exchanged = crossing(compiled.as_text())
    names = {name for name, _, _ in exchanged}
    assert names == {"collective-permute"}
    # A quarter of the 16 rows that a device ends up with.
    assert {count for _, dtype, count in exchanged if dtype == "u8"} == {4 * 3 * 2 * 3}


@pytest.mark.parametrize(
    ("candidates", "size", "message"),
    [(60, 16, "super-batch of 60"), (64, 12, "sub-batch of 12")],
)
def test_shares_must_be_equal(candidates, size, message):
    with jax.set_mesh(meshes.make_mesh()), pytest.raises(ConfigError, match=message):
        jax.jit(exchange).lower(batch(candidates), jnp.arange(size, dtype=jnp.int32))


@pytest.mark.slow
def test_it_compiles_for_tpus():
    pytest.importorskip("libtpu")
    script = pathlib.Path(__file__).with_name("exchange_v5e.py")
    paths = [str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = (
        os.environ
        | COMPILER_ENVIRONMENT
        | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
    )
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
