"""Fingerprints of weights: the same wherever they lie, others for any other weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aced.cache import fingerprint


def weights():
    rng = np.random.default_rng(0)
    return {
        "image": {"kernel": rng.normal(size=(16, 24)).astype(np.float32)},
        "text": {"kernel": jnp.asarray(rng.normal(size=(8, 3)), jnp.bfloat16)},
        "t": jnp.float32(2.5),
    }


def placed(params, *axes):
    """The parameters, each sharded along its first axis over this number of devices."""
    mesh = jax.make_mesh(axes, ("a", "b")[: len(axes)])
    spec = PartitionSpec(*mesh.axis_names)

    def put(x):
        return jax.device_put(x, NamedSharding(mesh, spec if np.ndim(x) else PartitionSpec()))

    return jax.tree.map(put, params)


@pytest.mark.parametrize("axes", [(2,), (8,)])
def test_devices_do_not_matter(axes):
    assert fingerprint.of_placed(placed(weights(), *axes)) == fingerprint.of_placed(weights())


def test_sum_is_that_by_hand():
    x = np.array([[1.5, -2.0, 0.0], [3.0, 1e-30, 7.0]], np.float32)
    bits = [int(b) for b in x.reshape(-1).view(np.uint32)]
    expected = sum(b * (2 * i + 1) for i, b in enumerate(bits)) % 2**32
    assert fingerprint.of_placed({"x": x}) == fingerprint.of_weights({"x": np.uint32(expected)})


@pytest.mark.parametrize("change", ["last bit", "swap", "name", "type"])
def test_other_weights_have_another(change):
    params = weights()
    kernel = params["image"]["kernel"]
    if change == "last bit":
        kernel[3, 5] = np.nextafter(kernel[3, 5], np.float32(9))
    elif change == "swap":
        kernel[[0, 1]] = kernel[[1, 0]]
    elif change == "name":
        params["image"] = {"bias": kernel}
    else:
        params["text"]["kernel"] = params["text"]["kernel"].astype(jnp.float32)
    assert fingerprint.of_placed(params) != fingerprint.of_placed(weights())
