"""Meshes of three axes: which rows lie where, and batches that come back as they went in."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from aced.config import ConfigError
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig


@pytest.mark.parametrize(
    ("fsdp", "tensor", "shards"), [(1, 1, 8), (4, 1, 8), (2, 2, 4), (1, 8, 1), (8, 1, 8)]
)
def test_a_batch_is_shared_over_data_and_fsdp(fsdp, tensor, shards):
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=fsdp, tensor=tensor))
    assert mesh.devices.shape == (8 // fsdp // tensor, fsdp, tensor)
    assert meshes.example_shards(mesh) == shards
    rows = np.arange(48).reshape(16, 3)
    x = meshes.global_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(x, rows)
    # In the order of the devices, the same rows for all of a tensor group.
    share = 16 // shards
    for shard in x.addressable_shards:
        group = list(mesh.devices.flat).index(shard.device) // tensor
        np.testing.assert_array_equal(shard.data, rows[group * share : (group + 1) * share])


def test_rows_follow_the_mesh_and_not_the_processes():
    devices = np.array(jax.devices())[[0, 3, 1, 2, 7, 5, 6, 4]]
    mesh = Mesh(devices.reshape(4, 2, 1), meshes.AXES)
    rows = np.arange(16) * 10
    x = meshes.global_batch({"x": rows[meshes.local_rows(mesh, 16)]}, mesh)["x"]
    np.testing.assert_array_equal(x, rows)
    by_device = {shard.device: shard.data.tolist() for shard in x.addressable_shards}
    assert [by_device[device] for device in devices] == rows.reshape(8, 2).tolist()


def test_constraints_in_a_mesh_context():
    assert meshes.data_shards() == 1
    with jax.set_mesh(meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))):
        assert meshes.data_shards() == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": 3}, "does not divide the 8 devices"),
        ({"fsdp": 4, "tensor": 4}, "does not divide the 8 devices"),
        ({"tensor": 0}, "must be at least 1"),
        ({"rules": ((".*", ("model",)),)}, r"names the axes \['model'\]"),
    ],
)
def test_meshes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        meshes.make_mesh(config=MeshConfig(**settings))


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ConfigError, match="12 examples cannot be shared equally by 8 devices"):
        meshes.local_rows(meshes.make_mesh(), 12)
