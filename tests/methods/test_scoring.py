"""Cheap scoring against towers that are built for the smaller input."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.cost import flops
from aced.data.tokenizers import TokenizerConfig
from aced.methods import scoring
from aced.methods.scoring import ScoringConfig
from aced.models import flexi, two_tower
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig
from aced.parallel import mesh as meshes

MODEL = two_tower.TwoTowerConfig(
    image=ImageConfig(size="mu", patch=4, resolution=16, pool="gap"),
    text=TextConfig(size="mu", vocab_size=10, length=6),
    tokenizer=TokenizerConfig(kind="shapes", length=6),
)
ENDS = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, pool="eot", eot_id=9))
SHORT = two_tower.TwoTower(
    dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, length=4))
)
EIGHT = two_tower.TwoTower(
    dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, patch=8))
)
KEPT = np.array([0, 1, 2, 5])  # 4 tokens of 6: the last one is where the tower reads
FLEXI = ScoringConfig(patch=8, text_length=4)


def embed(model, settings, *arguments):
    return jax.jit(lambda *xs: scoring.embed(model, settings, *xs))(*arguments)


def apply(tower, params, image, text):
    return jax.jit(tower.apply)({"params": params}, image, text)


@functools.cache
def inputs(n=8):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)
    image = rng.integers(0, 256, (n, 16, 16, 3), np.uint8)
    return params, jnp.asarray(image), jnp.asarray(rng.integers(0, 9, (n, 6), np.int32))


def of_short(params):
    return params | {"text": params["text"] | {"position": params["text"]["position"][KEPT]}}


def for_patches_of_8(params):
    return params | {"image": flexi.resize_params(params["image"], MODEL.image, 8)}


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# What is computed.


def test_the_defaults_are_the_model_as_it_is_trained():
    params, image, text = inputs()
    assert ScoringConfig().exact
    found = embed(MODEL, ScoringConfig(), params, image, text)
    expected = apply(two_tower.TwoTower(MODEL), params, image, text)
    assert_close(found, expected, rtol=0, atol=0)


def test_larger_patches_change_the_image_alone():
    params, image, text = inputs()
    found = embed(MODEL, ScoringConfig(patch=8), params, image, text)
    whole = apply(two_tower.TwoTower(MODEL), params, image, text)
    assert_close((found.ztxt, found.scale, found.bias), (whole.ztxt, whole.scale, whole.bias))
    expected = apply(EIGHT, for_patches_of_8(params), image, text)
    assert_close(found.zimg, expected.zimg, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found.zimg, whole.zimg, atol=1e-2)


def test_small_pictures_are_read_in_as_many_patches():
    """Half of the pixels a side; patches of 8 pixels become the model's own 4."""
    params, image, text = inputs()
    small = image[:, ::2, ::2]
    settings = ScoringConfig(patch=8, resolution=8)
    grid = jnp.asarray(params["image"]["position"]).reshape(4, 4, -1)
    grid = jax.image.resize(grid, (2, 2, grid.shape[-1]), "bilinear", antialias=True)
    tower = params["image"] | {"position": grid.reshape(4, -1)}
    eight = dataclasses.replace(MODEL.image, resolution=8)
    expected = apply(
        two_tower.TwoTower(dataclasses.replace(MODEL, image=eight)),
        params | {"image": tower},
        small,
        text,
    )
    found = embed(MODEL, settings, params, small, text)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)

    # Without a larger patch the positions stay, and patches have 2 pixels.
    tower = params["image"] | {
        "patch": flexi.resize_params(params["image"], MODEL.image, 2)["patch"]
    }
    two = dataclasses.replace(eight, patch=2)
    expected = apply(
        two_tower.TwoTower(dataclasses.replace(MODEL, image=two)),
        params | {"image": tower},
        small,
        text,
    )
    found = embed(MODEL, ScoringConfig(resolution=8), params, small, text)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_last_token_is_kept_where_the_tower_reads_it():
    params, image, text = inputs()
    found = embed(MODEL, ScoringConfig(text_length=4), params, image, text)
    assert_close(found, apply(SHORT, of_short(params), image, text[:, KEPT]), rtol=1e-5, atol=1e-6)
    changed = text.at[:, 3:5].set(0)
    assert_close(embed(MODEL, ScoringConfig(text_length=4), params, image, changed), found, rtol=0)


def test_a_text_that_loses_its_end_gets_another():
    params, image, _ = inputs()
    whole = [[1, 9, 0, 0, 0, 0], [1, 2, 3, 9, 0, 0], [1, 2, 3, 4, 9, 0], [1, 2, 3, 4, 5, 9]]
    short = [[1, 9, 0, 0], [1, 2, 3, 9], [1, 2, 3, 9], [1, 2, 3, 9]]
    found = embed(
        ENDS, ScoringConfig(text_length=4), params, image[:4], jnp.array(whole, jnp.int32)
    )
    expected = apply(two_tower.TwoTower(ENDS), params, image[:4], jnp.array(short, jnp.int32))
    assert_close(found.ztxt, expected.ztxt, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_low_precision_is_close(precision):
    params, image, text = inputs()
    found = embed(MODEL, ScoringConfig(precision=precision), params, image, text)
    exact = embed(MODEL, ScoringConfig(), params, image, text)
    for a, b in ((found.zimg, exact.zimg), (found.ztxt, exact.ztxt)):
        assert a.dtype == jnp.float32
        assert 0.99 < (a * b).sum(-1).min() < 1 - 1e-7


# What it costs.


def test_macs_by_hand():
    d, mlp, weights = 32, 128, 4 * 32 * 32 + 2 * 32 * 128
    image, text = scoring.macs(MODEL, FLEXI)
    assert image == 4 * (3 * 8 * 8 * d) + 4 * (weights + 2 * 4 * d)  # 4 patches instead of 16
    assert text == 4 * (weights + 2 * 4 * d) + d * d  # 4 tokens instead of 6
    small, _ = scoring.macs(MODEL, ScoringConfig(patch=8, resolution=8))
    assert small == image - 4 * 3 * (8 * 8 - 4 * 4) * d  # only the patches have fewer pixels
    assert scoring.macs(MODEL, ScoringConfig(precision="int8")) == flops.macs(MODEL)
    assert mlp == MODEL.image.dims.mlp


def test_patches_twice_as_large_cost_a_quarter_in_the_blocks():
    model = two_tower.preset("SigLIP-B/16-256")
    image, text = scoring.macs(model, ScoringConfig(patch=32))
    whole, all_of_text = flops.macs(model)
    assert text == all_of_text
    assert image / whole == pytest.approx(0.25, abs=0.01)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "method.scoring.patch = 5 must divide image.resolution = 16"),
        ({"patch": 2}, "no less than the model's image.patch = 4"),
        ({"resolution": 32}, "method.scoring.resolution = 32 must be at most image.resolution"),
        ({"resolution": 6}, r"its patches of 4 \* 6 / 16 pixels must be whole"),
        ({"text_length": 7}, "method.scoring.text_length = 7 is more than the 6 tokens"),
    ],
)
def test_check_refuses_invalid_scoring(changes, message):
    with pytest.raises(ConfigError, match=message):
        ScoringConfig(**changes).check(MODEL)


def test_check_accepts_valid_scoring():
    small = ScoringConfig(patch=8, resolution=4)
    assert small.view == ScoringConfig(patch=8)  # training reads its own pictures
    for settings in (ScoringConfig(), FLEXI, ScoringConfig(patch=16, text_length=6), small):
        settings.check(MODEL)


@pytest.mark.parametrize("changes", [{"patch": 0}, {"text_length": 0}])
def test_zero_is_refused(changes):
    with pytest.raises(ConfigError, match="at least 1"):
        ScoringConfig(**changes)


# Training at the scoring resolution.


@pytest.mark.slow
def test_one_in_every_few_is_trained_as_it_is_scored():
    every = 4
    params, image, text = inputs()
    settings = dataclasses.replace(FLEXI, precision="int8")  # which training leaves out
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 32)), jnp.float32)

    def mixed(params):
        e = scoring.embed_mixed(MODEL, settings, every, params, image, text)
        return (weights[0] * e.zimg + weights[1] * e.ztxt).sum() + e.scale, e

    def by_kind(params):
        """All examples through both towers; of each example, the one that it is due."""
        full = two_tower.TwoTower(MODEL).apply({"params": params}, image, text)
        large = EIGHT.apply({"params": for_patches_of_8(params)}, image, text)
        short = SHORT.apply({"params": of_short(params)}, image, text[:, KEPT])
        as_scored = (np.arange(8) % every == 0)[:, None]
        zimg = jnp.where(as_scored, large.zimg, full.zimg)
        ztxt = jnp.where(as_scored, short.ztxt, full.ztxt)
        return (weights[0] * zimg + weights[1] * ztxt).sum() + full.scale, (zimg, ztxt)

    (_, found), gradient = jax.jit(jax.value_and_grad(mixed, has_aux=True))(params)
    (_, rows), expected = jax.jit(jax.value_and_grad(by_kind, has_aux=True))(params)
    assert_close((found.zimg, found.ztxt), rows, rtol=1e-4, atol=1e-5)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_split_and_join_keep_the_order():
    batch = {"id": jnp.arange(12), "image": jnp.arange(48, dtype=jnp.uint8).reshape(12, 2, 2)}
    first, others = scoring.split_every(batch, 3)
    np.testing.assert_array_equal(first["id"], [0, 3, 6, 9])
    np.testing.assert_array_equal(others["id"], [1, 2, 4, 5, 7, 8, 10, 11])
    for name, x in batch.items():
        np.testing.assert_array_equal(scoring.join_every(first[name], others[name], 3), x)


@pytest.mark.parametrize(("n", "every"), [(8, 3), (8, 1), (8, 0), (6, 4)])
def test_a_batch_that_cannot_be_cut_is_refused(n, every):
    with pytest.raises(ConfigError, match="multi_resolution_every"):
        scoring.split_every(jnp.arange(n), every)


@pytest.mark.slow
def test_on_a_mesh_nothing_leaves_its_device():
    params, image, text = inputs(16)
    expected = jax.jit(lambda *xs: scoring.embed_mixed(MODEL, FLEXI, 2, *xs))(params, image, text)
    mesh = meshes.make_mesh(jax.devices())
    with jax.set_mesh(mesh):
        rows, everywhere = meshes.by_example(mesh), meshes.replicated(mesh)
        arguments = (jax.device_put(params, everywhere), *jax.device_put((image, text), rows))
        mixed = jax.jit(lambda *xs: scoring.embed_mixed(MODEL, FLEXI, 2, *xs))
        compiled = mixed.lower(*arguments).compile()
        found = compiled(*arguments)
        with pytest.raises(ConfigError, match="16 examples on 8 devices"):
            scoring.split_every(arguments[1], 4)
    assert not re.search(r"all-gather|all-reduce|all-to-all|permute", compiled.as_text())
    assert found.zimg.sharding.is_equivalent_to(rows, 2)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
