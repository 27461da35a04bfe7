"""The image tower against a float64 vision transformer written with loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.models import vit
from aced.models.transformer import Compute
from aced.models.vit import ImageConfig, ViT

TINY = ImageConfig(size="mu", patch=4, resolution=14, depth=2)


def build(config, embed_dim=None, seed=0):
    """The tower and parameters that are all away from their special initial values."""
    model = ViT(config, embed_dim)
    image = jnp.zeros((1, config.resolution, config.resolution, 3))
    params = jax.jit(model.init)(jax.random.key(seed), image)["params"]
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), params)
    return model, jax.tree.map(jnp.add, params, noise)


def images(config, b=3, seed=1):
    side = config.resolution
    return np.random.default_rng(seed).integers(0, 256, (b, side, side, 3), np.uint8)


# The oracle: one image, one head, one token at a time.


def norm(p, x, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def attend(p, queries, tokens, heads):
    q, k, v = dense(p["q"], queries), dense(p["k"], tokens), dense(p["v"], tokens)
    size = q.shape[-1] // heads
    out = np.zeros_like(q)
    for i in range(len(q)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp([q[i, part] @ key[part] / math.sqrt(size) for key in k])
            out[i, part] = scores / scores.sum() @ v[:, part]
    return dense(p["out"], out)


def mlp(p, x):
    y = dense(p["fc1"], x)
    y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return dense(p["fc2"], y)


def oracle(params, config, image):
    """Embedding of one float image, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    heads, eps, side = config.dims.heads, config.norm_eps, config.patch
    cells = [(r * side, c * side) for r in range(config.grid) for c in range(config.grid)]
    cut = [image[r : r + side, c : c + side].reshape(-1) for r, c in cells]
    x = dense(p["patch"], np.stack(cut))
    if config.pool == "cls":
        x = np.concatenate([p["cls"][None], x])
    x = x + p["position"]
    if config.pre_norm:
        x = norm(p["norm_pre"], x, eps)
    for layer in range(config.dims.depth):
        block = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        y = norm(block["norm1"], x, eps)
        x = x + attend(block["attention"], y, y, heads)
        x = x + mlp(block["mlp"], norm(block["norm2"], x, eps))
    x = norm(p["norm"], x, eps)
    if config.pool == "map":
        x = attend(p["map"]["attention"], p["map"]["probe"][None], x, heads)
        x = x + mlp(p["map"]["mlp"], norm(p["map"]["norm"], x, eps))
    z = x.mean(0) if config.pool == "gap" else x[0]
    return dense(p["head"], z) if "head" in p else z


@pytest.mark.parametrize("embed_dim", [None, 12])
@pytest.mark.parametrize("pool", ["map", "cls", "gap"])
def test_tower_equals_float64_loops(pool, embed_dim):
    config = dataclasses.replace(TINY, pool=pool, pre_norm=pool == "cls", patch_bias=pool != "cls")
    model, params = build(config, embed_dim)
    image = np.random.default_rng(2).standard_normal((2, 14, 14, 3), np.float32)
    z = jax.jit(model.apply)({"params": params}, image)
    expected = np.stack([oracle(params, config, x) for x in image])
    assert z.shape == (2, embed_dim or 32)
    np.testing.assert_allclose(z, expected, rtol=2e-5, atol=2e-5)


def test_patch_embedding_is_a_strided_valid_convolution():
    image = np.random.default_rng(0).standard_normal((2, 14, 14, 3), np.float32)
    kernel = np.random.default_rng(1).standard_normal((4, 4, 3, 5), np.float32)
    ours = vit.patchify(jnp.asarray(image), 4).reshape(2, 9, -1) @ kernel.reshape(-1, 5)
    conv = jax.lax.conv_general_dilated(
        image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, conv.reshape(2, 9, 5), rtol=1e-4, atol=1e-4)


def test_uint8_is_normalised_on_the_device_and_floats_are_not():
    mean, std = (0.48, 0.45, 0.4), (0.27, 0.26, 0.25)
    config = dataclasses.replace(TINY, mean=mean, std=std)
    model, params = build(config)
    image = images(config)
    by_hand = ((image / 255.0 - np.array(mean)) / np.array(std)).astype(np.float32)
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    np.testing.assert_allclose(apply(image), apply(by_hand), rtol=1e-5, atol=1e-5)
    assert not np.allclose(apply(image), apply(image.astype(np.float32)), atol=1e-2)


def test_sincos_positions_by_hand():
    table = vit.sincos2d(3, 16)  # 4 frequencies from 1 to 1/10000, for sin x, cos x, sin y, cos y
    for y in range(3):
        for x in range(3):
            frequencies = [10_000 ** -(i / 3) for i in range(4)]
            parts = [(math.sin, x), (math.cos, x), (math.sin, y), (math.cos, y)]
            expected = [f(at * w) for f, at in parts for w in frequencies]
            np.testing.assert_allclose(table[3 * y + x], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["map", "cls"])
def test_sincos_tower_equals_learned_one_with_the_table(pool):
    learned = dataclasses.replace(TINY, pool=pool)
    fixed = dataclasses.replace(learned, position="sincos2d")
    model, params = build(fixed)
    assert "position" not in params
    table = np.zeros((learned.tokens, 32), np.float32)
    table[learned.tokens - 9 :] = vit.sincos2d(3, 32)
    image = jnp.asarray(images(TINY))
    same = jax.jit(ViT(learned, None).apply)({"params": params | {"position": table}}, image)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, image), same, atol=1e-6)


@pytest.mark.parametrize(
    ("resolution", "patch", "grid"), [(240, 24, 10), (288, 32, 9), (224, 14, 16), (384, 14, 27)]
)
def test_grid_is_rounded_down(resolution, patch, grid):
    assert ImageConfig(resolution=resolution, patch=patch).grid == grid


def test_pixels_beyond_the_last_whole_patch_are_not_looked_at():
    model, params = build(TINY)  # 3 patches of 4 in 14 px
    image = images(TINY)
    other = image.copy()
    other[:, 12:] = 0
    other[:, :, 12:] = 0
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    np.testing.assert_array_equal(apply(image), apply(other))


def test_wrong_resolution_names_both_shapes():
    model, params = build(TINY)
    with pytest.raises(ValueError, match=r"\[b, 14, 14, 3\], found \(2, 16, 14, 3\)"):
        model.apply({"params": params}, jnp.zeros((2, 16, 14, 3)))


def test_half_precision_keeps_parameters_and_results_float32():
    model, params = build(TINY)
    half = ViT(TINY, None, Compute(dtype="bfloat16"))
    fresh = jax.eval_shape(half.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(fresh))
    image = jnp.asarray(images(TINY))
    z, exact = (jax.jit(m.apply)({"params": params}, image) for m in (half, model))
    assert z.dtype == jnp.float32
    error = np.linalg.norm(z - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05  # not float32 in disguise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 15}, "image.patch = 15 must be at most image.resolution = 14"),
        ({"position": "sincos2d", "width": 6}, "multiple of 4 and at least 8, got 6"),
        ({"std": (0.5, 0.0, 0.5)}, r"std\[1\] must be above 0, got 0.0"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)
