"""Products in 8-bit integers against integer arithmetic in numpy, and on a TPU's compiler."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.models import int8, transformer, two_tower
from aced.models.text import TextConfig
from aced.models.transformer import Compute
from aced.models.vit import ImageConfig
from aced.preflight import COMPILER_ENVIRONMENT

MODEL = two_tower.TwoTowerConfig(
    image=ImageConfig(size="mu", patch=4, resolution=8, depth=2),
    text=TextConfig(size="mu", vocab_size=10, length=5, depth=2),
    embed_dim=16,
)


def by_hand(x, kernel):
    """The product, in float64 around whole numbers."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    of_token = np.abs(x).max(-1, keepdims=True) / 127
    of_channel = np.abs(kernel).max(0) / 127
    of_token, of_channel = (np.where(s == 0, 1, s) for s in (of_token, of_channel))
    whole = np.rint(x / of_token).astype(np.int64) @ np.rint(kernel / of_channel).astype(np.int64)
    return whole * of_token * of_channel


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_dot_is_the_scaled_product_of_integers():
    x, kernel = normal((2, 5, 32), 0), normal((32, 7), 1)
    x[0, 1] *= 1000  # one token's scale is not another's
    kernel[:, 3] *= 1e-3
    x[1, 2], kernel[:, 0] = 0, 0  # no scale at all
    found = int8.dot(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, by_hand(x, kernel), rtol=1e-5, atol=1e-6)
    error = np.linalg.norm(found - x @ kernel, axis=-1)
    assert (error <= 0.02 * np.linalg.norm(x, axis=-1) * np.linalg.norm(kernel)).all()


def test_largest_magnitudes_fill_the_range():
    whole, scale = int8.quantize(jnp.array([[-2.0, 1.0, 0.004], [0.0, 0.0, 0.0]]), -1)
    np.testing.assert_array_equal(whole, [[-127, 64, 0], [0, 0, 0]])
    np.testing.assert_allclose(scale[0], 2 / 127)


def test_the_product_keeps_the_dtype_of_the_activations():
    x, kernel = normal((3, 16), 0), normal((16, 4), 1)
    half = jnp.asarray(x, jnp.bfloat16)
    found = int8.dot(half, jnp.asarray(kernel, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    expected = by_hand(half, jnp.asarray(kernel, jnp.bfloat16))
    np.testing.assert_allclose(np.float32(found), expected, rtol=1e-2)


def test_mlp_by_hand():
    mlp = transformer.Mlp(24, "gelu_tanh", Compute(int8=True))
    x = jnp.asarray(normal((2, 3, 8), 0))
    params = jax.tree.map(
        lambda s: normal(s.shape, 1), jax.eval_shape(mlp.init, jax.random.key(0), x)
    )
    first, second = params["params"]["fc1"], params["params"]["fc2"]
    y = by_hand(x, first["kernel"]) + first["bias"]
    y = np.float32(jax.nn.gelu(jnp.asarray(y, jnp.float32), approximate=True))
    expected = by_hand(y, second["kernel"]) + second["bias"]
    # An activation at the edge between two integers may fall to the other side.
    np.testing.assert_allclose(jax.jit(mlp.apply)(params, x), expected, atol=0.05)


def apply(tower, params, image, text):
    jitted = jax.jit(tower.apply)
    return jitted({"params": params}, image, text)


def model_inputs(seed=0):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)
    image = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    text = rng.integers(0, 10, (6, 5), np.int32)
    return params, jnp.asarray(image), jnp.asarray(text)


@pytest.mark.slow
def test_embeddings_stay_near_and_have_the_same_parameters():
    params, image, text = model_inputs()
    exact = apply(two_tower.TwoTower(MODEL), params, image, text)
    eight = two_tower.TwoTower(MODEL, int8=True)
    found = apply(eight, params, image, text)
    for a, b in ((exact.zimg, found.zimg), (exact.ztxt, found.ztxt)):
        cosines = (a * b).sum(-1)
        assert (cosines > 0.999).all()
        assert not np.array_equal(a, b)
    shapes = jax.eval_shape(eight.init, jax.random.key(0), image, text)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_all_products_with_the_weights_of_blocks_and_pooling_are_in_int8():
    params, image, text = model_inputs()

    def program(eight):
        apply = two_tower.TwoTower(MODEL, int8=eight).apply
        return str(jax.make_jaxpr(apply)({"params": params}, image, text))

    # Blocks are scanned, so each tower's stand there once: q, k, v, out, fc1, fc2; and the pooling.
    eight = re.findall(r":(\w+)\[[\d,]*\] = dot_general\[", program(True))
    assert eight.count("i32") == 3 * 6
    every = re.findall(r":(\w+)\[[\d,]*\] = dot_general\[", program(False))
    assert every.count("f32") == len(eight) == eight.count("i32") + eight.count("f32")


def test_a_gradient_is_refused():
    params, image, text = model_inputs()

    def loss(params):
        return (
            two_tower.TwoTower(MODEL, int8=True).apply({"params": params}, image, text).zimg.sum()
        )

    with pytest.raises(TypeError, match="int8 has no gradient"):
        jax.grad(loss)(params)


COMPILE_FOR_TPU = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig

topology = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu")
model = two_tower.TwoTowerConfig(
    image=ImageConfig(size="S", depth=1, patch=16, resolution=64),
    text=TextConfig(size="S", depth=1, vocab_size=64, length=16),
    dtype="bfloat16",
)
chip = SingleDeviceSharding(topology.devices[0])
params = jax.eval_shape(model.init, jax.random.key(0))
image, text = jnp.zeros((64, 64, 64, 3), jnp.uint8), jnp.zeros((64, 16), jnp.int32)
apply = jax.jit(two_tower.TwoTower(model, int8=True).apply)
arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip),
    ({"params": params}, image, text),
)
print(apply.lower(*arguments).compile().as_text())
"""


@pytest.mark.slow
def test_tpu_multiplies_integers():
    pytest.importorskip("libtpu")
    environment = os.environ | COMPILER_ENVIRONMENT
    run = subprocess.run(
        [sys.executable, "-c", COMPILE_FOR_TPU], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    shapes = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", run.stdout))
    products = re.findall(r" = (\w+)\[[^=]*? convolution\((%[\w.-]+), (%[\w.-]+)\)", run.stdout)
    kinds = [(out, shapes[left], shapes[right]) for out, left, right in products]
    # Two blocks and the pooling; the product of its one probe need not be a matrix product.
    assert kinds.count(("s32", "s8", "s8")) >= 3 * 6 - 1
