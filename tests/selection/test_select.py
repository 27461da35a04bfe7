"""The dispatcher and its settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError, from_config, to_config
from aced.outputs import Embeddings
from aced.parallel import mesh as meshes
from aced.selection import SelectionConfig, select, take

choose = jax.jit(select, static_argnames=("config", "loss", "size"))


def embeddings(seed: int, n: int = 96, d: int = 8) -> Embeddings:
    z = np.random.default_rng(seed).normal(size=(2, n, d))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return Embeddings(
        zimg=jnp.asarray(z[0], jnp.float32),
        ztxt=jnp.asarray(z[1], jnp.float32),
        scale=jnp.float32(10.0),
        bias=jnp.float32(-4.0),
    )


@pytest.mark.parametrize("method", ["joint", "independent"])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_ids_are_unique_and_of_every_stratum_alike(method, loss):
    config = SelectionConfig(method=method, chunks=4, strata=3)
    selection = choose(jax.random.key(0), embeddings(0), embeddings(1), config, loss=loss, size=24)
    ids = np.asarray(selection.ids)
    assert ids.dtype == np.int32
    assert len(set(ids.tolist())) == 24
    np.testing.assert_array_equal(np.sort(ids) // 32, np.repeat([0, 1, 2], 8))


def test_picks_depend_on_the_key():
    config = SelectionConfig(chunks=4, gain=1.0)

    def picks(seed):
        chosen = choose(
            jax.random.key(seed), embeddings(0), embeddings(1), config, loss="sigmoid", size=24
        )
        return np.asarray(chosen.ids)

    np.testing.assert_array_equal(picks(0), picks(0))
    assert not np.array_equal(np.sort(picks(0)), np.sort(picks(1)))


def test_everything_can_be_chosen():
    config = SelectionConfig(filter_ratio=0.0, chunks=4, strata=2)
    chosen = select(
        jax.random.key(0), embeddings(0), embeddings(1), config, loss="sigmoid", size=96
    )
    np.testing.assert_array_equal(np.sort(chosen.ids), np.arange(96))


def test_scores_carry_no_gradient():
    def selected_score(learner):
        config = SelectionConfig(chunks=4)
        chosen = select(jax.random.key(0), learner, embeddings(1), config, loss="sigmoid", size=24)
        return chosen.metrics["selection/score_selected"]

    for leaf in jax.tree.leaves(jax.grad(selected_score)(embeddings(0))):
        np.testing.assert_array_equal(leaf, 0)


def test_scores_that_need_one_model_work_without_the_other():
    key = jax.random.key(0)
    for score, pair in [
        ("hard_learner", (embeddings(0), None)),
        ("easy_reference", (None, embeddings(0))),
    ]:
        config = SelectionConfig(score=score, chunks=4)
        assert len(set(choose(key, *pair, config, loss="softmax", size=24).ids.tolist())) == 24


@pytest.mark.parametrize(
    ("settings", "models", "size", "loss", "message"),
    [
        ({}, (embeddings(0), None), 16, "sigmoid", "'learnability' needs the reference"),
        ({"score": "easy_reference"}, (embeddings(0), None), 16, "sigmoid", "the reference"),
        ({"score": "hard_learner"}, (None, embeddings(0)), 16, "sigmoid", "the learner"),
        ({}, (embeddings(0), embeddings(1, n=95)), 16, "sigmoid", r"\[96, 95\]"),
        ({}, (embeddings(0), embeddings(1)), 24, "sigmoid", "not divisible by selection.chunks"),
        ({"strata": 5}, (embeddings(0), embeddings(1)), 80, "sigmoid", "selection.strata=5"),
        ({"chunks": 1}, (embeddings(0), embeddings(1)), 97, "sigmoid", "Cannot choose 97"),
        ({}, (embeddings(0), embeddings(1)), 16, "hinge", "'hinge'"),
        (
            {"score": "hard_learner", "false_negative_margin": 0.02},
            (embeddings(0), None),
            16,
            "sigmoid",
            "false_negative_margin needs the reference's embeddings",
        ),
        (
            {"false_negative_margin": 0.02},
            (embeddings(0), embeddings(1)),
            16,
            "softmax",
            "set selection.first_chunk = 'uniform'",
        ),
    ],
)
def test_refusals(settings, models, size, loss, message):
    with pytest.raises(ConfigError, match=message):
        select(jax.random.key(0), *models, SelectionConfig(**settings), loss=loss, size=size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_ratio": 1.0}, "filter_ratio"),
        ({"filter_ratio": -0.1}, "filter_ratio"),
        ({"chunks": 0}, "chunks"),
        ({"strata": 0}, "strata"),
        ({"tile": 0}, "tile"),
        ({"gain": 0.0}, "gain"),
        ({"false_negative_margin": 0.0}, "false_negative_margin"),
        ({"draw": "top_k"}, "selection.draw"),
    ],
)
def test_contradictory_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**settings)


def test_super_batch_size():
    # JEST's: 32,768 of 163,840 at f = 0.8.
    assert (
        SelectionConfig(filter_ratio=0.8, strata=256, chunks=16).super_batch_size(32768) == 163840
    )
    assert SelectionConfig(filter_ratio=0.5).super_batch_size(64) == 128
    assert SelectionConfig(filter_ratio=0.0).super_batch_size(64) == 64
    # 64 / 0.3 = 213.3, to whole strata
    assert SelectionConfig(filter_ratio=0.7, strata=4).super_batch_size(64) == 212
    with pytest.raises(ConfigError, match=r"not divisible by selection\.chunks"):
        SelectionConfig().super_batch_size(40)


@pytest.mark.parametrize(
    ("settings", "size", "strata"),
    [
        ({"filter_ratio": 0.8, "chunks": 16}, 32768, 256),  # JEST's
        ({"filter_ratio": 0.8, "chunks": 16}, 4 * 32768, 256),  # no more than that
        ({"filter_ratio": 0.8, "chunks": 16}, 16384, 128),  # shares of 128
        ({"filter_ratio": 0.8, "chunks": 16}, 128, 1),  # one share of 128
        ({"filter_ratio": 0.8, "chunks": 16}, 16, 1),
        ({"filter_ratio": 0.8, "chunks": 5}, 1280, 8),  # 16 would make shares of 80
        ({"filter_ratio": 0.8, "chunks": 16}, 3 * 1024, 16),  # 32 would make shares of 96
        ({"filter_ratio": 0.7, "chunks": 1}, 256, 1),  # 256 / 0.3 = 853.3, an odd number
        ({"filter_ratio": 0.8, "method": "independent"}, 512, 4),
        ({"filter_ratio": 0.8, "chunks": 16, "strata": 5}, 32768, 5),  # as it is set
    ],
)
def test_strata_follow_from_the_sizes(settings, size, strata):
    config = SelectionConfig(**settings)
    assert config.for_batch(size) == dataclasses.replace(config, strata=strata)


def test_sizes_with_strata_by_the_sizes():
    config = SelectionConfig(filter_ratio=0.8, chunks=16)
    assert config.super_batch_size(32768) == 163840
    assert config.for_batch(32768).sub_batch_size(163840) == 32768
    with pytest.raises(ConfigError, match=r"set it, or call for_batch"):
        config.sub_batch_size(163840)


def test_select_without_strata_uses_those_of_its_sizes():
    key, models = jax.random.key(0), (embeddings(0, n=1024), embeddings(1, n=1024))
    unset = choose(key, *models, SelectionConfig(chunks=4), loss="sigmoid", size=512)
    four = choose(key, *models, SelectionConfig(chunks=4, strata=4), loss="sigmoid", size=512)
    np.testing.assert_array_equal(unset.ids, four.ids)
    np.testing.assert_array_equal(np.sort(unset.ids) // 256, np.repeat(np.arange(4), 128))


@pytest.mark.parametrize("strata", [8, None])
def test_settings_survive_the_config(strata):
    config = SelectionConfig(score="easy_reference", strata=strata, gain=10.0)
    assert from_config(SelectionConfig, to_config(config)) == config


@pytest.mark.parametrize(("devices", "strata"), [(1, 4), (4, 4), (2, 4), (4, 1), (4, 2)])
def test_take_is_indexing(devices, strata):
    x = np.random.default_rng(0).integers(0, 256, (12, 2, 3), np.uint8)
    tree = {"image": jnp.asarray(x), "id": jnp.arange(12)}
    ids = jnp.array([0, 2, 3, 5, 6, 8, 9, 11])
    mesh = meshes.make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, meshes.by_example(mesh))
        chosen = jax.jit(take, static_argnums=2)(placed, ids, strata)
    np.testing.assert_array_equal(chosen["image"], x[np.asarray(ids)])
    np.testing.assert_array_equal(chosen["id"], ids)
