"""The train state, a pytree that holds a whole run, and its update."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree


@struct.dataclass
class TrainState:
    """All state needed to resume a run exactly. The position in the input follows from `step`.

    Every field is a tree, because its leaves may also be shapes, shardings or host arrays.
    """

    step: PyTree  # int32 []; steps so far, including skipped ones
    params: PyTree  # float32
    opt_state: PyTree
    key: PyTree  # typed PRNG key []; constant, each step folds in its number
    ema: PyTree | None  # moving average of params, or None
    skipped: PyTree  # int32 []; updates skipped because loss or gradient was not finite
    skipped_in_a_row: PyTree  # int32 []
    method: PyTree  # further state of the method

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate and export: the moving average, if there is one."""
        return self.params if self.ema is None else self.ema


def create(
    params: PyTree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
    method: PyTree = None,
) -> TrainState:
    """Returns the state before step 0."""
    # Three separate zeros, because a buffer cannot be donated twice.
    step, skipped, skipped_in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(
        step=step,
        params=params,
        opt_state=tx.init(params),
        key=key,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=skipped,
        skipped_in_a_row=skipped_in_a_row,
        method=method,
    )


def apply_gradients(
    state: TrainState,
    tx: optax.GradientTransformation,
    loss: Float[Array, ""],
    grads: PyTree,
    *,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """Returns the state after one update, and its metrics.

    If loss or gradient is not finite, parameters, optimizer state and average stay unchanged; the
    step still counts, so the input advances. The loop stops the run after too many such steps in a
    row.
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    skipped = jnp.logical_not(finite).astype(jnp.int32)
    new = state.replace(
        step=state.step + 1,
        params=_where(finite, params, state.params),
        opt_state=_where(finite, opt_state, state.opt_state),
        ema=_where(finite, ema, state.ema),
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
    )
    metrics = {
        "grad_norm": grad_norm,
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(new.params),
        "skipped": new.skipped,
        "skipped_in_a_row": new.skipped_in_a_row,
    }
    return new, metrics


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
