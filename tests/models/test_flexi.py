"""Parameters at another patch size against float64 algebra on whole pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.models import flexi
from aced.models.vit import ImageConfig, ViT

BASE = ImageConfig(size="mu", patch=4, resolution=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def picture_matrix(old, new):
    """The float64 matrix [new*new, old*old] of `jax.image.resize`: its answer to every pixel."""
    pixels = jnp.eye(old * old).reshape(-1, old, old)
    resized = jax.image.resize(pixels, (old * old, new, new), "bilinear", antialias=True)
    return np.asarray(resized, np.float64).reshape(old * old, -1).T


def tower(config, seed=0):
    shapes = jax.eval_shape(
        ViT(config, None).init,
        jax.random.key(0),
        jnp.zeros((1, config.resolution, config.resolution, 3)),
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes["params"])


@pytest.mark.parametrize(("old", "new"), [(4, 8), (3, 5), (16, 32), (8, 4), (7, 3), (5, 5)])
def test_resize_matrix_matches_jax(old, new):
    expected = jax.image.resize(jnp.eye(old), (new, old), "bilinear", antialias=True)
    np.testing.assert_allclose(flexi.resize_matrix(old, new), expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 16), (2, 4), (4, 2), (8, 2)])
def test_kernel_is_the_best_for_resized_patches(old, new):
    """The least-squares solution of <resize(x), w'> = <x, w> for all x, channel by channel."""
    config = dataclasses.replace(BASE, patch=old)
    params = tower(config)
    kernel = np.asarray(params["patch"]["kernel"], np.float64).reshape(old * old, 3 * 32)
    resized = np.asarray(flexi.resize_params(params, config, new)["patch"]["kernel"], np.float64)
    resize = picture_matrix(old, new)
    expected, *_ = np.linalg.lstsq(resize.T, kernel, rcond=None)
    np.testing.assert_allclose(resized.reshape(new * new, 3 * 32), expected, atol=1e-5)
    if new > old:  # FlexiViT's property: the products are the same
        patches = np.random.default_rng(1).normal(size=(10, old * old))
        products = (patches @ resize.T) @ resized.reshape(new * new, 3 * 32)
        np.testing.assert_allclose(products, patches @ kernel, rtol=1e-4, atol=1e-4)


def test_enlarged_picture_with_larger_patches_gives_the_same_embedding():
    """Through the whole tower, from uint8 pixels, with their normalisation in between."""
    rng = np.random.default_rng(2)
    patches = 16 * rng.integers(0, 16, (2, 4, 4, 4, 3))  # enlarged twice, these stay whole numbers
    double = picture_matrix(4, 8)
    enlarged = np.einsum("Pp,bnpc->bnPc", double, patches.reshape(2, 4, 16, 3)).round()

    def picture(x, side):  # 2 x 2 patches
        x = x.reshape(2, 2, 2, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
        return jnp.asarray(x.reshape(2, 2 * side, 2 * side, 3), jnp.uint8)

    params = tower(BASE)
    resized = flexi.resize_params(params, BASE, 8)
    small = ViT(dataclasses.replace(BASE, resolution=8), None)
    large = ViT(dataclasses.replace(BASE, patch=8), None)
    expected = jax.jit(small.apply)(
        {"params": resized | {"patch": params["patch"]}}, picture(patches, 4)
    )
    found = jax.jit(large.apply)({"params": resized}, picture(enlarged, 8))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pool", ["map", "cls"])
def test_positions_are_resized_like_a_picture_and_the_class_token_is_kept(pool):
    config = dataclasses.replace(BASE, pool=pool)
    params = tower(config)
    extra = 1 if pool == "cls" else 0
    found = flexi.resize_params(params, config, 8)["position"]
    assert found.shape == (extra + 4, 32)
    np.testing.assert_array_equal(found[:extra], params["position"][:extra])
    grid = np.asarray(params["position"][extra:], np.float64)
    np.testing.assert_allclose(found[extra:], picture_matrix(4, 2) @ grid, atol=1e-5)


def test_only_patches_and_learned_positions_change():
    params = tower(BASE)
    resized = flexi.resize_params(params, BASE, 8)
    same = [name for name in params if resized[name] is params[name]]
    assert sorted(same) == sorted(set(params) - {"patch", "position"})
    assert resized["patch"]["bias"] is params["patch"]["bias"]
    assert flexi.resize_params(params, BASE, 4) is params

    fixed = dataclasses.replace(BASE, position="sincos2d", pool="gap")
    params = tower(fixed)
    resized = flexi.resize_params(params, fixed, 8)
    assert "position" not in resized
    shape = jax.eval_shape(
        ViT(dataclasses.replace(fixed, patch=8), None).apply,
        {"params": resized},
        jnp.zeros((1, 16, 16, 3), jnp.uint8),
    ).shape
    assert shape == (1, 32)


def test_gradient_reaches_the_base_parameters():
    params = tower(BASE)
    resized, back = jax.vjp(lambda p: flexi.resize_params(p, BASE, 8), params)
    rng = np.random.default_rng(3)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), resized)
    found = back(gradient)[0]
    up, down = picture_matrix(4, 8), picture_matrix(4, 2)
    kernel = np.linalg.pinv(up.T).T @ np.asarray(gradient["patch"]["kernel"]).reshape(64, 96)
    np.testing.assert_allclose(found["patch"]["kernel"], kernel.reshape(48, 32), atol=1e-4)
    positions = down.T @ np.asarray(gradient["position"])
    np.testing.assert_allclose(found["position"], positions, atol=1e-5)


@pytest.mark.parametrize("patch", [0, 3, 32])
def test_a_patch_that_does_not_fill_the_picture_is_refused(patch):
    with pytest.raises(ConfigError, match=f"patch of {patch} pixels does not divide"):
        flexi.resize_params(tower(BASE), BASE, patch)
