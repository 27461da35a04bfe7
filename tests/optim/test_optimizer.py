import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from aced.config import ConfigError, from_config, to_config
from aced.optim import optimizer
from aced.optim.schedules import ScheduleConfig

STEPS = 6
CONSTANT = ScheduleConfig(kind="constant", peak=0.01)
DECAYING = ScheduleConfig(kind="linear", peak=0.01, warmup_steps=2)


def rates(schedule):
    """Learning rates of all updates, by hand."""
    if schedule is CONSTANT:
        return [0.01] * STEPS
    return [0.01 * min(1, s / 2) * (1 - max(0, s - 2) / (STEPS - 2)) for s in range(STEPS)]


def parameters():
    rng = np.random.default_rng(0)
    return {
        "image": {
            "blocks": {
                "kernel": rng.normal(size=(3, 4, 5)),  # three stacked layers
                "bias": rng.normal(size=(3, 5)),
            },
            "embedding": rng.normal(size=(6, 4)),
        },
        "t": np.asarray(1.5),
    }


def gradients(size=1.0):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda p: size * rng.normal(size=p.shape), parameters()) for _ in range(STEPS)
    ]


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def train(config, grads):
    params = float32(parameters())
    tx, _ = optimizer.build(config, params, total_steps=STEPS, batch_size=1)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(float32(g), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def flat(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def clip(grads, max_norm, frozen=()):
    total = np.sqrt(sum(np.sum(g**2) for name, g in grads.items() if name not in frozen))
    return {name: g * min(1.0, max_norm / total) for name, g in grads.items()}


def adamw(grads, lrs, *, b1, b2, eps, decay, mults=None, max_norm=1e9, mu_dtype=np.float64):
    """AdamW (Loshchilov and Hutter, algorithm 2) in float64.

    `decay(name, lr)`: the share of p that is subtracted; `mults`: multiplies the learning rate.
    """
    p, mults = flat(parameters()), mults or {}
    m = {name: np.zeros(x.shape, mu_dtype) for name, x in p.items()}
    v = {name: np.zeros(x.shape) for name, x in p.items()}
    frozen = [name for name, mult in mults.items() if mult == 0]
    for s, (g, lr) in enumerate(zip(grads, lrs, strict=True)):
        for name, gradient in clip(flat(g), max_norm, frozen).items():
            if name in frozen:
                continue
            # optax multiplies in the type of the stored moment: bfloat16(0.9) is 0.8984.
            moment = float(mu_dtype(b1)) * m[name].astype(np.float64) + (1 - b1) * gradient
            v[name] = b2 * v[name] + (1 - b2) * gradient**2
            u = moment / (1 - b1 ** (s + 1)) / (np.sqrt(v[name] / (1 - b2 ** (s + 1))) + eps)
            m[name] = moment.astype(mu_dtype)
            p[name] = p[name] - lr * mults.get(name, 1.0) * u - decay(name, lr) * p[name]
    return p


def assert_same(params, expected, rtol=3e-6):
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=rtol, err_msg=name)


MATRICES = ("image/blocks/kernel", "image/embedding")


@pytest.mark.parametrize("schedule", [CONSTANT, DECAYING])
@pytest.mark.parametrize("follows", ["lr", "schedule"])
def test_adamw_decays_matrices_only(schedule, follows):
    config = optimizer.OptimizerConfig(
        schedule=schedule,
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        weight_decay=0.2,
        clip_norm=None,
        decay_follows=follows,
    )
    params, _ = train(config, gradients())
    scale = 0.2 if follows == "lr" else 0.2 / 0.01
    expected = adamw(
        gradients(),
        rates(schedule),
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        decay=lambda name, lr: scale * lr if name in MATRICES else 0.0,
    )
    assert_same(params, expected)


def test_adamw_with_decay_by_the_learning_rate_is_optax_adamw():
    config = optimizer.OptimizerConfig(
        schedule=CONSTANT,
        weight_decay=0.1,
        clip_norm=None,
        decay_follows="lr",
        decay_rules=((".*", 1.0),),
    )
    params, _ = train(config, gradients())
    tx = optax.adamw(0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
    expected = float32(parameters())
    state = tx.init(expected)
    for g in gradients():
        updates, state = tx.update(float32(g), state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_same(params, flat(expected), rtol=1e-6)


def test_half_precision_first_moment():
    config = optimizer.OptimizerConfig(
        schedule=CONSTANT, weight_decay=0.0, clip_norm=None, mu_dtype="bfloat16"
    )
    params, state = train(config, gradients())
    moments = optax.tree.get(state, "mu")
    assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype(jnp.bfloat16)}
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "decay": lambda name, lr: 0.0}
    got = flat(params)

    def distance(expected):
        return np.mean(np.concatenate([np.ravel(np.abs(got[k] - expected[k])) for k in got]))

    # Compilers may or may not round the product to bfloat16, so this is no exact comparison.
    half = distance(adamw(gradients(), rates(CONSTANT), **settings, mu_dtype=ml_dtypes.bfloat16))
    full = distance(adamw(gradients(), rates(CONSTANT), **settings))
    assert half < 0.6 * full < 1e-3


def test_learning_rate_and_decay_rules_first_match_wins():
    config = optimizer.OptimizerConfig(
        schedule=CONSTANT,
        weight_decay=0.2,
        decay_follows="lr",
        clip_norm=None,
        lr_rules=((".*/bias", 3.0), ("image/.*", 0.5)),
        decay_rules=((".*/embedding", 2.0), ("image/.*", 0.25)),
    )
    params, _ = train(config, gradients())
    mults = {"image/blocks/bias": 3.0, "image/blocks/kernel": 0.5, "image/embedding": 0.5, "t": 1.0}
    decays = {"image/blocks/bias": 0.25, "image/blocks/kernel": 0.25, "image/embedding": 2.0}
    expected = adamw(
        gradients(),
        rates(CONSTANT),
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        mults=mults,
        decay=lambda name, lr: lr * mults[name] * decays.get(name, 0.0) * 0.2,
    )
    assert_same(params, expected)


@pytest.mark.parametrize("size", [1e-3, 10.0])
def test_clip_leaves_out_frozen_parameters(size):
    config = optimizer.OptimizerConfig(
        schedule=CONSTANT, weight_decay=0.5, eps=0.1, clip_norm=1.0, lr_rules=(("image/b.*", 0.0),)
    )
    params, state = train(config, gradients(size))
    expected = adamw(
        gradients(size),
        rates(CONSTANT),
        b1=0.9,
        b2=0.95,
        eps=0.1,
        max_norm=1.0,
        mults={"image/blocks/bias": 0.0, "image/blocks/kernel": 0.0},
        decay=lambda name, lr: 0.5 * (name in MATRICES),
    )
    assert_same(params, expected)
    start = flat(float32(parameters()))
    for name in ("image/blocks/bias", "image/blocks/kernel"):
        np.testing.assert_array_equal(flat(params)[name], start[name])
    # Two moments of the embedding and of t, two counts; nothing for what is frozen.
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * (24 + 1) + 2


def test_lion():
    config = optimizer.OptimizerConfig(
        name="lion", schedule=DECAYING, b1=0.9, b2=0.99, weight_decay=0.1, clip_norm=None
    )
    params, _ = train(config, gradients())
    p = flat(parameters())
    m = {name: np.zeros(x.shape) for name, x in p.items()}
    for g, lr in zip(gradients(), rates(DECAYING), strict=True):
        for name, gradient in flat(g).items():  # Chen et al. 2023, algorithm 2
            u = np.sign(0.9 * m[name] + 0.1 * gradient)
            m[name] = 0.99 * m[name] + 0.01 * gradient
            decay = 0.1 * lr / 0.01 if name in MATRICES else 0.0
            p[name] = p[name] - lr * u - decay * p[name]
    assert_same(params, p)


def test_adafactor_factors_matrices_but_not_stacked_vectors():
    config = optimizer.OptimizerConfig(
        name="adafactor",
        schedule=CONSTANT,
        weight_decay=0.0,
        clip_norm=None,
        adafactor_min_factored=3,  # the bias [3, 5] would be factored if it were a matrix
        mu_dtype="float32",
    )
    params, _ = train(config, gradients())
    p = flat(parameters())
    m = {name: np.zeros(x.shape) for name, x in p.items()}
    row, col, full = ({name: 0.0 for name in p} for _ in range(3))
    for s, g in enumerate(gradients()):
        b2 = min(0.999, 1 - (s + 1.0) ** -0.8)
        for name, gradient in flat(g).items():
            square = gradient**2 + 1e-30
            if name in MATRICES:  # Shazeer and Stern 2018, algorithm 4
                row[name] = b2 * row[name] + (1 - b2) * square.mean(-1)
                col[name] = b2 * col[name] + (1 - b2) * square.mean(-2)
                mean = row[name].mean(-1)[..., None, None]
                second = row[name][..., :, None] * col[name][..., None, :] / mean
            else:
                full[name] = second = b2 * full[name] + (1 - b2) * square
            m[name] = 0.9 * m[name] + 0.1 * gradient / np.sqrt(second)
            p[name] = p[name] - 0.01 * m[name]
    assert_same(params, p, rtol=1e-5)


def test_learning_rate_for_the_log_is_the_one_used():
    config = optimizer.OptimizerConfig(name="lion", schedule=DECAYING, weight_decay=0.0)
    params = float32(parameters())
    tx, lr = optimizer.build(config, params, total_steps=STEPS, batch_size=1)
    state = tx.init(params)
    for step, g in enumerate(gradients()):
        updates, state = tx.update(float32(g), state, params)
        np.testing.assert_allclose(abs(updates["t"]), lr(step), rtol=1e-6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"lr_rules": (("imgae/.*", 0.1),)}, r"lr_rules: 'imgae/\.\*' .* matches no parameter"),
        ({"decay_rules": (("kernel", 1.0),)}, r"decay_rules: 'kernel' .* such as 'image/blocks"),
        ({"lr_rules": ((".*", 0.5), ("t", 0.0))}, "'t' has no effect, earlier rules"),
        ({"lr_rules": ((".*", 0.0),)}, "nothing is left to train"),
        ({"lr_rules": (("(", 0.0),)}, "is not a regex"),
        ({"lr_rules": (("t", -1.0),)}, r"lr_rules\[0\]\[1\] must be at least 0, got -1.0"),
        ({"lr_rules": (("t", math.nan),)}, r"lr_rules\[0\]\[1\] must be at least 0, got nan"),
        ({"decay_rules": ((".*", math.inf),)}, "must be at least 0 and finite, got inf"),
        ({"lr_rules": (("t", 1e30),)}, r"learning rate to 1e\+27; at most 100 is allowed"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, got nan"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0 and finite, got inf"),
        ({"weight_decay": 1e30}, r"weight_decay = 1e\+30 .* removes 1e\+30 of a weight"),
        ({"weight_decay": 1e30, "decay_follows": "lr"}, r"removes 1e\+27 of a weight"),
        ({"weight_decay": 0.5, "decay_rules": ((".*", 3.0),)}, "removes 1.5 of a weight"),
        ({"eps": math.inf}, "eps must be at least 0 and finite"),
        ({"adafactor_eps": math.nan}, "adafactor_eps must be at least 0, got nan"),
        ({"clip_norm": math.nan}, "clip_norm must be above 0, got nan"),
        ({"b1": math.nan}, "b1 must be at least 0 and below 1, got nan"),
        ({"b2": 1.0}, "b2 must be at least 0 and below 1, got 1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.build(
            optimizer.OptimizerConfig(**rules), parameters(), total_steps=STEPS, batch_size=1
        )


def test_the_largest_decay_and_rate_that_are_allowed():
    """A decay of 1 per step removes a weight at once, and is allowed."""
    optimizer.OptimizerConfig(weight_decay=1.0)
    optimizer.OptimizerConfig(weight_decay=1000.0, decay_follows="lr")  # of a peak of 1e-3
    optimizer.OptimizerConfig(
        schedule=ScheduleConfig(peak=100.0), decay_follows="lr", weight_decay=0.01
    )


def test_shapes_alone_are_enough_and_settings_survive_a_config():
    config = optimizer.OptimizerConfig(lr_rules=(("t", 0.0),), schedule=DECAYING)
    assert from_config(optimizer.OptimizerConfig, to_config(config)) == config
    shapes = jax.eval_shape(lambda: float32(parameters()))
    tx, _ = optimizer.build(config, shapes, total_steps=STEPS, batch_size=1)
    state = jax.eval_shape(tx.init, shapes)
    assert len(jax.tree.leaves(state)) == 2 * 3 + 2
