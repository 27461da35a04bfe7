"""DIME-FM's step against its parts: which loss, whose gradient, on which devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aced.config import ConfigError
from aced.losses import similarity
from aced.methods.base import StepContext
from aced.methods.dime import Dime, DimeConfig, student
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.optim import state
from aced.parallel import mesh as meshes
from aced.train.config import parse
from configs import dime_b32
from tests import cached

PICTURES, SENTENCES, WIDTH = 16, 24, 24
TEACHER = cached.model(width=WIDTH, resolution=16)
LOSS = similarity.SimilarityConfig(distance_weight=0.1)
TX = optax.sgd(0.1)


def config(**changes):
    own = cached.model(width=WIDTH, resolution=24, length=9)
    own = dataclasses.replace(own, init_bias=-1.0)
    return DimeConfig(
        model=student(own, TEACHER),
        teacher=FrozenConfig(model=TEACHER, cache="pictures"),
        loss=LOSS,
        **changes,
    )


@pytest.fixture(scope="module", name="batch")
def _batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (PICTURES, 24, 24, 3), np.uint8),
        "id": np.arange(PICTURES, dtype=np.int32) + 100,
        "teacher/zimg": np.float32(rng.normal(size=(PICTURES, WIDTH))),  # of any length
        "sentences/ztxt": np.float32(rng.normal(size=(SENTENCES, WIDTH))),
        "sentences/id": np.arange(SENTENCES, dtype=np.int32),
    }


def new_state(method):
    params = method.init_params(jax.random.key(0))
    return state.create(params, TX, jax.random.key(1))


def step(method, train_state, batch):
    return jax.jit(functools.partial(method.train_step, context=StepContext(TX)))(
        train_state, {}, batch
    )


def test_the_step_is_the_loss_of_its_embeddings(batch):
    method = Dime(config())
    start = new_state(method)
    after, metrics = step(method, start, batch)

    def loss(image):
        params = start.params["model"] | {"image": image}
        tower = two_tower.TwoTower(method.config.model)
        z = tower.apply({"params": params}, jnp.asarray(batch["image"]), method="encode_image")
        u, v = (
            x / jnp.linalg.norm(x, axis=1, keepdims=True)
            for x in (batch["teacher/zimg"], batch["sentences/ztxt"])
        )
        parts = similarity.similarity_losses(z, u, v, LOSS)
        return 0.7 * parts["score"] + 0.3 * parts["pseudo"] + 0.1 * parts["distance"]

    value, gradient = jax.value_and_grad(loss)(start.params["model"]["image"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start.params["model"]["image"], gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        after.params["model"]["image"],
        expected,
    )
    for part in ("text", "t", "bias"):
        jax.tree.map(
            np.testing.assert_array_equal, after.params["model"][part], start.params["model"][part]
        )
    np.testing.assert_array_equal(metrics["picks"], batch["id"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"form": "full"}, {"train_micro_batch": 8}], ids=str)
def test_same_step_on_eight_devices(batch, changes):
    method = Dime(config(**changes))
    expected, expected_metrics = step(Dime(config()), new_state(method), batch)
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        found, metrics = step(method, new_state(method), meshes.global_batch(batch, mesh))
    for name in ("loss", "loss/score", "loss/pseudo", "loss/distance", "teacher_cosine"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found.params, expected.params
    )


def test_student_shares_all_but_the_image_tower():
    own = cached.model(width=32, resolution=24, length=9)
    model = student(dataclasses.replace(own, embed_dim=None), TEACHER)
    assert (model.text, model.tokenizer) == (TEACHER.text, TEACHER.tokenizer)
    assert model.image == own.image
    assert (model.width, model.embed_dim) == (WIDTH, WIDTH)
    with pytest.raises(ConfigError, match="embed_dim = 32, but the teacher's"):
        student(own, TEACHER)


def test_what_is_read():
    streams = Dime(config(sentences=_sentences(batch_size=SENTENCES))).streams(
        DimeConfig().sentences.data, PICTURES
    )
    shapes = {
        f"{prefix}{name}": (stream.rows, *shape)
        for prefix, stream in streams.items()
        for name, (shape, _) in stream.shapes().items()
    }
    assert shapes == {
        "id": (PICTURES,),
        "image": (PICTURES, 24, 24, 3),
        "teacher/zimg": (PICTURES, WIDTH),
        "sentences/id": (SENTENCES,),
        "sentences/ztxt": (SENTENCES, WIDTH),
    }


def _sentences(**changes):
    return dataclasses.replace(DimeConfig().sentences, **changes)


def test_missing_teacher_or_cache_is_named():
    for changes, key in (
        ({}, "method.teacher.checkpoint"),
        ({"teacher": FrozenConfig(checkpoint="x")}, "method.teacher.cache"),
        ({"teacher": FrozenConfig(checkpoint="x", cache="y")}, "method.sentences.cache"),
    ):
        with pytest.raises(ConfigError, match=f"{key} is empty"):
            DimeConfig(**changes).resolve("")


def test_stored_augmentations_beside_the_students_are_refused_with_the_settings():
    settings = dime_b32.get_config("tiny")
    settings.data.augmentations, settings.data.augment.flip = 3, 0.5
    with pytest.raises(ConfigError, match=r"set method\.augment\.crop_area to \(1, 1\)"):
        parse(settings)
    settings.method.augment.crop_area, settings.method.augment.flip = (1.0, 1.0), 0.0
    assert parse(settings).data.augmentations == 3
