"""One step of every method of the table against the same step written out by hand."""

import by_hand
import jax
import numpy as np
import optax
import pytest

from aced.methods.base import StepContext
from aced.methods.contrastive import Contrastive

B, SIZE = 32, 8
ZERO = [(1, np.zeros((B, B))), (-1, np.zeros((B, B)))]  # learnability of equals
CASES = [
    ("iid", {}),
    ("kd", {}),
    ("hard", {"loss": "softmax"}),
    ("i_acid", {}),
    ("h_acid", {}),
    ("aced", {}),
    ("aced_iid", {}),
]
MORE_CASES = [
    ("kd", {"kd": "sigmoid", "loss": "softmax"}),
    ("kd", {"kd": "feature"}),
    ("aced", {"form": "full"}),
    ("aced", {"loss": "softmax", "kd": "sigmoid", "train_micro_batch": 4}),
    ("aced_iid", {"train_micro_batch": 2, "score_micro_batch": 8}),
    ("h_acid", {"selection": {"strata": 1}}),  # the paper's draw
    ("kd", {"contrastive_weight": 0.0}),
    ("kd", {"loss": "softmax", "reference_shift": True}),
    ("h_acid", {"loss": "softmax", "reference_shift": True, "train_micro_batch": 4}),
    ("aced", {"contrastive_weight": 0.0, "loss": "softmax"}),
    ("aced", {"contrastive_weight": 0.5, "distillation": {"reference_scale": 60.0}}),
]


def check_step(settings):
    """Compares; returns (the method, its super-batch, the names of the metrics)."""
    method = Contrastive(settings)
    train_state, frozen = by_hand.state_of(method), by_hand.frozen_of(method)
    before = jax.tree.map(np.array, frozen)
    batch = by_hand.batch_of(method, B)
    size = SIZE if settings.selection.filter_ratio else B
    assert method.config.super_batch_size(size) == B
    ids, task, distilled, params = by_hand.step(method, train_state, frozen, batch, size)
    new, metrics = by_hand.jitted(method)(train_state, frozen, batch)

    np.testing.assert_array_equal(metrics["picks"], batch["id"][ids])
    if size < B:
        # The scores decide, and not the noise alone.
        by_noise = by_hand.choose(train_state, ZERO, settings.selection, settings.loss, B, size)
        assert len(set(by_noise) & set(ids)) < size - 1
    share = settings.contrastive_weight
    assert ("loss/contrastive" in metrics) == (share > 0)
    if share:
        np.testing.assert_allclose(metrics["loss/contrastive"], task, rtol=1e-5)
    weight = settings.distillation.weight
    assert ("loss/distillation" in metrics) == (weight > 0)
    if weight:
        assert weight == by_hand.WEIGHT
        np.testing.assert_allclose(metrics["loss/distillation"], distilled, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], share * task + weight * distilled, rtol=1e-5)
    assert new.step == train_state.step + 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), new.params, params
    )
    # The step did something, much more than what is tolerated.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.params, train_state.params)
    assert max(jax.tree.leaves(moved)) > 1e-2
    jax.tree.map(np.testing.assert_array_equal, frozen, before)

    is_noisy = np.asarray(batch["is_noisy"])
    np.testing.assert_allclose(metrics["selection/noisy_share"], is_noisy[ids].mean())
    np.testing.assert_allclose(metrics["selection/noisy_share_super_batch"], is_noisy.mean())
    return method, batch, set(metrics)


@pytest.mark.parametrize(
    ("name", "changes"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)],
)
def test_one_step_equals_the_step_by_hand(name, changes):
    method, batch, metrics = check_step(by_hand.settings(name, **changes))
    assert ("selection/score_selected" in metrics) == (name not in ("iid", "kd"))
    # Nothing is asked for that the method does not use.
    assert list(method.frozen) == ([] if name in ("iid", "hard") else ["reference"])
    assert set(batch) == {"id", "image", "text", "is_noisy"}


@pytest.mark.slow
def test_models_that_see_other_pixels_and_other_tokens():
    settings = by_hand.settings(
        "aced",
        reference=by_hand.model(resolution=16, patch=8, kind="clip_bpe", scale=20.0),
        teachers={
            "small": by_hand.model(resolution=48, length=6, embed_dim=24, scale=5.0),
            "same": by_hand.model(scale=30.0),
        },
        names=("small", "reference", "same"),
    )
    method, batch, _ = check_step(settings)
    assert set(method.models) == {"", "reference/", "teacher/small/", "teacher/same/"}
    assert method.models["teacher/small/"] == settings.teachers["small"].model
    assert set(batch) - {"id", "image", "text", "is_noisy"} == {
        "reference/image",
        "reference/text",
        "teacher/small/image",
        "teacher/small/text",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kd", ["softmax", "sigmoid"])
def test_teachers_averaged_before_the_softmax(kd):
    """Reference and teacher; the reference teaches with another scale than it scores with."""
    settings = by_hand.settings(
        "aced",
        kd=kd,
        teachers={"other": by_hand.model(length=6, embed_dim=24, scale=5.0)},
        names=("other", "reference"),
        contrastive_weight=0.0,
        distillation={"average": "logits", "reference_scale": 70.0},
    )
    check_step(settings)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_learnability_is_zero_if_learner_equals_reference(loss):
    settings = by_hand.settings("h_acid", reference=by_hand.model(), loss=loss)
    method = Contrastive(settings)
    train_state, batch = by_hand.state_of(method), by_hand.batch_of(method, B)

    @jax.jit
    def numbers(train_state, batch):
        frozen = {"reference": train_state.params["model"]}
        metrics = method.train_step(train_state, frozen, batch, StepContext(optax.sgd(0.1)))[1]
        return (
            metrics["picks"],
            metrics["selection/score_selected"],
            metrics["selection/score_candidates"],
        )

    picks, selected, candidates = numbers(train_state, batch)
    assert selected == 0.0
    assert candidates == 0.0
    # Noise alone decides.
    ids = by_hand.choose(train_state, ZERO, settings.selection, loss, B, SIZE)
    np.testing.assert_array_equal(picks, batch["id"][np.sort(ids)])


@pytest.mark.slow
def test_no_gradient_through_scores_nor_into_frozen_models():
    method = Contrastive(by_hand.settings("aced"))
    train_state, frozen = by_hand.state_of(method), by_hand.frozen_of(method)
    batch = by_hand.batch_of(method, B)

    def number(name):
        def of(params, frozen):
            args = train_state.replace(params=params), frozen, batch
            return method.train_step(*args, StepContext(optax.sgd(0.1)))[1][name]

        return of

    models = train_state.params, frozen
    of_score = jax.jit(jax.grad(number("selection/score_selected"), argnums=(0, 1)))(*models)
    of_loss = jax.jit(jax.grad(number("loss"), argnums=1))(*models)
    for gradient in (*of_score, of_loss):
        assert jax.tree.leaves(gradient)
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))
