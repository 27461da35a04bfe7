"""Weights stored in 8-bit integers, against the same rounding in numpy."""

import jax
import numpy as np

from aced.models import int8_weights
from aced.models.saved import flat
from tests.models.test_int8 import MODEL, model_inputs


def rounded(name, x):
    """The weights as float64 numbers that are whole multiples of their scale."""
    axis = {"kernel": -2, "token": -1}.get(name.rpartition("/")[2])
    if axis is None:
        return np.asarray(x, np.float64)
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis, keepdims=True) / 127
    return np.rint(x / scale) * scale


def test_matrices_and_tables_are_rounded_by_channel_and_row():
    params, _, _ = model_inputs()
    stored = flat(jax.jit(int8_weights.quantized)(params))
    for name, x in flat(params).items():
        found = stored[name]
        if name.endswith(("kernel", "token")):
            assert found.values.dtype == np.int8
            assert found.values.shape == x.shape
            found = found.unbox()
        np.testing.assert_allclose(found, rounded(name, x), atol=1e-6)
    kernels = [x for x in stored.values() if isinstance(x, int8_weights.Int8Weights)]
    assert len(kernels) == 6 * 3 + 4  # blocks of both towers, pooling; patches, token, two heads


def test_embeddings_are_those_of_the_rounded_weights():
    params, image, text = model_inputs()
    embed = jax.jit(MODEL.embed)
    found = embed(int8_weights.quantized(params), image, text)
    by_name = {name: rounded(name, x).astype(np.float32) for name, x in flat(params).items()}
    leaves, tree = jax.tree.flatten(params)
    names = list(flat(jax.tree.map(np.asarray, params)))
    assert len(names) == len(leaves)
    wanted = embed(jax.tree.unflatten(tree, [by_name[name] for name in names]), image, text)
    np.testing.assert_allclose(found.zimg, wanted.zimg, atol=2e-6)
    np.testing.assert_allclose(found.ztxt, wanted.ztxt, atol=2e-6)
    exact = embed(params, image, text)
    assert not np.array_equal(found.zimg, exact.zimg)
    assert ((found.zimg * exact.zimg).sum(-1) > 0.999).all()
