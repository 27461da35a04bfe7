"""The one update of the train state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aced.optim import state

PARAMS = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "t": np.float32(2.0)}
GRADS = {"w": np.array([[0.1, 0.2], [-0.3, 0.4]], np.float32), "t": np.float32(-0.5)}
RATE, DECAY = 0.1, 0.9


def new_state(tx, ema=True):
    return state.create(jax.tree.map(jnp.asarray, PARAMS), tx, jax.random.key(0), ema=ema)


def update(tx, old, loss=1.0, grads=GRADS):
    grads = jax.tree.map(jnp.asarray, grads)
    step = jax.jit(lambda s, loss, g: state.apply_gradients(s, tx, loss, g, ema_decay=DECAY))
    return step(old, jnp.float32(loss), grads)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_a_new_state():
    tx = optax.adam(RATE)
    new = new_state(tx)
    assert (new.step, new.skipped, new.skipped_in_a_row) == (0, 0, 0)
    assert bits(new.params) == bits(PARAMS)
    assert bits(new.ema) == bits(new.params)
    # Buffers of their own, so that the state can be donated.
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(new.replace(key=None))]
    assert len(set(pointers)) == len(pointers)
    assert new_state(tx, ema=False).ema is None


def test_two_steps_by_hand():
    tx = optax.sgd(RATE)
    new, ema = new_state(tx), PARAMS
    params = PARAMS
    for n in (1, 2):
        new, metrics = update(tx, new)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, GRADS)
        ema = jax.tree.map(lambda e, p: DECAY * e + (1 - DECAY) * p, ema, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.params, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.ema, ema)
        assert (new.step, new.skipped, new.skipped_in_a_row) == (n, 0, 0)
    grad_norm = np.sqrt(0.01 + 0.04 + 0.09 + 0.16 + 0.25)
    np.testing.assert_allclose(metrics["grad_norm"], grad_norm, rtol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], RATE * grad_norm, rtol=1e-6)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    np.testing.assert_allclose(metrics["param_norm"], np.linalg.norm(flat), rtol=1e-6)


def test_the_average_is_what_is_evaluated():
    tx = optax.sgd(RATE)
    averaged, _ = update(tx, new_state(tx))
    plain, _ = update(tx, new_state(tx, ema=False))
    assert plain.ema is None
    assert bits(plain.params) == bits(averaged.params)
    assert bits(plain.eval_params) == bits(plain.params)
    assert bits(averaged.eval_params) == bits(averaged.ema)
    assert bits(averaged.ema) != bits(averaged.params)


@pytest.mark.parametrize(
    ("loss", "entry"), [(np.nan, 0.2), (np.inf, 0.2), (1.0, np.nan), (1.0, -np.inf)]
)
def test_non_finite_update_changes_only_counters(loss, entry):
    tx = optax.adamw(RATE)
    before, _ = update(tx, new_state(tx))  # moments that are not zero
    grads = {"w": GRADS["w"].copy(), "t": GRADS["t"]}
    grads["w"][0, 1] = entry

    once, metrics = update(tx, before, loss, grads)
    twice, metrics = update(tx, once, loss, grads)
    for after in (once, twice):
        assert bits(after.params) == bits(before.params)
        assert bits(after.opt_state) == bits(before.opt_state)
        assert bits(after.ema) == bits(before.ema)
        assert bits(jax.random.key_data(after.key)) == bits(jax.random.key_data(before.key))
    assert (twice.step, twice.skipped, twice.skipped_in_a_row) == (3, 2, 2)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (2, 2)

    # A finite step goes on as if nothing had been.
    after, metrics = update(tx, twice)
    expected, _ = update(tx, before)
    assert bits(after.params) == bits(expected.params)
    assert bits(after.opt_state) == bits(expected.opt_state)
    assert bits(after.ema) == bits(expected.ema)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (4, 2, 0)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (2, 0)


def test_the_norm_of_parameters_is_that_of_the_state_after_a_skipped_step():
    tx = optax.sgd(RATE)
    before = new_state(tx)
    _, metrics = update(tx, before, grads={"w": GRADS["w"] * np.nan, "t": GRADS["t"]})
    expected = optax.tree.norm(before.params)
    np.testing.assert_allclose(metrics["param_norm"], expected)
