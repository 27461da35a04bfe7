"""The methods a second time: float64 selection over full matrices, losses and SGD written out.

Only the towers are shared with the code under test.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from scipy.special import logsumexp

from aced import methods
from aced.config import to_config
from aced.data.batch_spec import view_of
from aced.data.sources import DataConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.methods.base import StepContext
from aced.methods.contrastive import prefix_of
from aced.methods.contrastive_settings import ContrastiveConfig, DistillationConfig
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig
from aced.optim import state
from aced.selection import SelectionConfig
from configs import methods as table

RATE, WEIGHT, FILTER_RATIO = 1.0, 0.7, 0.75
COLOURS, FORMS = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")


def model(*, resolution=32, patch=16, length=8, kind="shapes", embed_dim=None, scale=10.0):
    """A two-tower model of the smallest size."""
    tokenizer = TokenizerConfig(kind=kind, length=length)
    vocab_size = get_tokenizer(tokenizer).vocab_size
    return two_tower.TwoTowerConfig(
        image=ImageConfig(size="mu", patch=patch, resolution=resolution, pool="gap"),
        text=TextConfig(size="mu", vocab_size=vocab_size, length=length),
        embed_dim=embed_dim,
        init_scale=scale,
        init_bias=-0.4 * scale,
        tokenizer=tokenizer,
    )


def settings(name, *, teachers=None, reference=None, kd="softmax", names=("reference",), **changes):
    """The parsed settings of the method `name` of `configs.methods`, as a recipe makes them."""
    config = ContrastiveConfig(
        model=model(),
        reference=FrozenConfig(model=reference or model(scale=20.0)),
        teachers={key: FrozenConfig(model=item) for key, item in (teachers or {}).items()},
        distillation=DistillationConfig(loss=kd, teachers=names),
        selection=SelectionConfig(filter_ratio=0.0, chunks=2, strata=2, gain=100.0),
    )
    config = ml_collections.ConfigDict({"method": to_config(config)})
    table.apply(config, name, filter_ratio=FILTER_RATIO, weight=WEIGHT)
    config.method.update(changes)
    return methods.parse(config.method)


def randomize(shapes, seed):
    """Parameters far from the initial ones, with which all examples look alike."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.1 + 0.3 * rng.normal(size=x.shape), x.dtype), shapes
    )


def params_of(config, seed):
    """Parameters of a model, with its own temperature and bias."""
    shapes = jax.eval_shape(config.init, jax.random.key(0))
    t, bias = jnp.log(config.init_scale), jnp.array(config.init_bias)
    return randomize(shapes, seed) | {"t": t, "bias": bias}


def frozen_of(method):
    return {
        name: params_of(item.model, 10 + i) for i, (name, item) in enumerate(method.frozen.items())
    }


def state_of(method):
    """A state in the middle of a run."""
    params = randomize(jax.eval_shape(method.init_params, jax.random.key(0)), 0)
    params["model"] = params_of(method.config.model, 1)
    new = state.create(params, optax.sgd(RATE), jax.random.key(7))
    return new.replace(step=jnp.array(3, jnp.int32))


def batch_of(method, n):
    """A super-batch with every view that differs from the learner's."""
    rng = np.random.default_rng(5)
    captions = [f"a {rng.choice(COLOURS)} {rng.choice(FORMS)}" for _ in range(n)]
    batch = {"id": np.arange(100, 100 + n, dtype=np.int32), "is_noisy": np.arange(n) % 3 == 0}
    for name, (shape, dtype) in method.streams(DataConfig(), n)[""].shapes().items():
        if name.endswith("image"):
            batch[name] = rng.integers(0, 256, (n, *shape), dtype)
    for prefix, item in method.models.items():
        if not prefix or item.tokenizer != method.models[""].tokenizer:
            batch[f"{prefix}text"] = get_tokenizer(item.tokenizer)(captions)
    return jax.tree.map(jnp.asarray, batch)


def jitted(method, **options):
    """The step, compiled."""
    tx = optax.sgd(RATE)
    return jax.jit(lambda s, f, b: method.train_step(s, f, b, StepContext(tx, **options)))


@dataclasses.dataclass
class Embedded:
    """The outputs of a model for some rows, as arrays or as traced values."""

    zimg: jax.Array
    ztxt: jax.Array
    scale: jax.Array
    bias: jax.Array

    def rows(self, ids):
        return dataclasses.replace(self, zimg=self.zimg[ids], ztxt=self.ztxt[ids])

    @property
    def logits(self):
        product = jnp.matmul(self.zimg, self.ztxt.T, precision="highest")
        return self.scale * product + self.bias

    @property
    def logits64(self):
        zimg, ztxt = np.asarray(self.zimg, np.float64), np.asarray(self.ztxt, np.float64)
        return float(self.scale) * zimg @ ztxt.T + float(self.bias)


@functools.partial(jax.jit, static_argnums=0)
def towers(config, params, image, text):
    """(zimg, ztxt) of a model."""
    model = two_tower.TwoTower(config)
    zimg = model.apply({"params": params}, image, method="encode_image")
    ztxt = model.apply({"params": params}, text, method="encode_text")
    return zimg, ztxt


@functools.partial(jax.jit, static_argnums=0)
def pull_back(config, params, image, text, gradients):
    """From gradients of (zimg, ztxt) to those of the parameters."""
    return jax.vjp(lambda p: towers(config, p, image, text), params)[1](gradients)[0]


def embed(config, params, image, text):
    """The outputs of a model for these images and texts."""
    # The initial temperature is no matter here: one compilation for models that differ by it.
    config = dataclasses.replace(config, init_scale=1.0, init_bias=0.0)
    zimg, ztxt = towers(config, params, image, text)
    return Embedded(zimg, ztxt, jnp.exp(params["t"]), params["bias"])


def see(method, name, params, batch):
    """The frozen model `name` on the super-batch, through its own view."""
    return embed(method.frozen[name].model, params, *view_of(batch, prefix_of(name)))


# Selection.


def conditional(logits, chosen, loss):
    """The loss that each candidate adds to the batch `chosen`; float64 [n]."""
    own = np.diag(logits)
    if loss == "sigmoid":
        others = np.logaddexp(0, logits)
        return np.logaddexp(0, -own) + others[:, chosen].sum(1) + others[chosen].sum(0)
    nll = np.zeros(len(own))
    for i in range(len(own)):
        met = [*chosen, i] if chosen else range(len(own))
        nll[i] = (logsumexp(logits[i, met]) + logsumexp(logits[met, i])) / 2 - own[i]
    return nll


def choose(train_state, signed_logits, config, loss, n, size):
    """Positions in the super-batch, in the order of `aced.selection.Selection.ids`."""
    key = jax.random.fold_in(train_state.key, train_state.step)
    noise = np.asarray(jax.random.gumbel(key, (config.chunks, n)), np.float64)
    rows, left = n // config.strata, np.full(config.strata, size // config.strata)
    chosen = []
    for chunk_noise in noise:
        score = sum(sign * conditional(logits, chosen, loss) for sign, logits in signed_logits)
        keys = config.gain * score + chunk_noise
        end = len(chosen) + size // config.chunks
        for i in np.argsort(-keys):
            if i not in chosen and left[i // rows] and len(chosen) < end:
                chosen.append(int(i))
                left[i // rows] -= 1
    return np.array(chosen)


SIGNS = {
    "hard_learner": {"learner": 1},
    "easy_reference": {"reference": -1},
    "learnability": {"learner": 1, "reference": -1},
}


# Losses, as sums over the n x n logits.


def contrastive(e, kind):
    logits, n = e.logits, len(e.zimg)
    if kind == "sigmoid":
        return -jax.nn.log_sigmoid((2 * jnp.eye(n) - 1) * logits).sum() / n
    rows, columns = jax.nn.log_softmax(logits, 1), jax.nn.log_softmax(logits, 0)
    return -(jnp.trace(rows) + jnp.trace(columns)) / (2 * n)


def distillation(student, teacher, kind, projection):
    n = len(student.zimg)
    if kind == "softmax":
        rows = jax.nn.softmax(teacher.logits, 1) * jax.nn.log_softmax(student.logits, 1)
        columns = jax.nn.softmax(teacher.logits, 0) * jax.nn.log_softmax(student.logits, 0)
        return -(rows.sum() + columns.sum()) / (2 * n)
    if kind == "sigmoid":
        p, l = jax.nn.sigmoid(teacher.logits), student.logits  # noqa: E741
        return -(p * jax.nn.log_sigmoid(l) + (1 - p) * jax.nn.log_sigmoid(-l)).sum() / n
    image = ((student.zimg @ projection["image"] - teacher.zimg) ** 2).sum()
    text = ((student.ztxt @ projection["text"] - teacher.ztxt) ** 2).sum()
    return (image + text) / (2 * n)


def step(method, train_state, frozen, batch, size):
    """Returns (positions picked, contrastive loss, distillation loss, new parameters)."""
    config, params, n = method.config, train_state.params, len(batch["id"])
    own = dataclasses.replace(config.model, init_scale=1.0, init_bias=0.0)
    seen = {name: see(method, name, frozen[name], batch) for name in method.frozen}
    learner = embed(own, params["model"], batch["image"], batch["text"])

    ids = kd_ids = np.arange(n)
    if size < n:
        signed = [
            (sign, ({"learner": learner} | seen)[name].logits64)
            for name, sign in SIGNS[config.selection.score].items()
        ]
        ids = choose(train_state, signed, config.selection, config.loss, n, size)
        ids = kd_ids = np.sort(ids)  # the sub-batch is in the order of the super-batch
    if config.distillation.batch == "iid":
        kd_ids = np.array([i * n // size for i in range(size)])
    names = config.distillation.teachers if config.distillation.weight else ()

    teachers = {name: seen[name].rows(kd_ids) for name in names}
    if config.distillation.reference_scale:
        scale = jnp.float32(config.distillation.reference_scale)
        teachers["reference"] = dataclasses.replace(teachers["reference"], scale=scale)
    if config.distillation.average == "logits":
        logits = sum(teacher.logits for teacher in teachers.values()) / len(teachers)
        teachers = {"average": types.SimpleNamespace(logits=logits)}

    def loss(z, t, bias, projections):
        e = Embedded(*z, jnp.exp(t), bias)
        model = e.rows(ids)
        if config.reference_shift:
            alike = dataclasses.replace(seen["reference"].rows(ids), scale=e.scale, bias=0.0)
            model = types.SimpleNamespace(zimg=ids, logits=model.logits - alike.logits)
        task = contrastive(model, config.loss)
        kd = [
            distillation(
                e.rows(kd_ids), teacher, config.distillation.loss, projections.get(name),
            )
            for name, teacher in teachers.items()
        ]  # fmt: skip
        distilled = sum(kd) / len(kd) if kd else 0.0
        total = config.contrastive_weight * task + config.distillation.weight * distilled
        return total, (task, distilled)

    (of_z, of_t, of_bias, of_projections), (task, distilled) = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    )(
        (learner.zimg, learner.ztxt),
        params["model"]["t"],
        params["model"]["bias"],
        params.get("projections", {}),
    )
    of_model = pull_back(own, params["model"], batch["image"], batch["text"], of_z)
    grads = {"model": of_model | {"t": of_t, "bias": of_bias}}
    if "projections" in params:
        grads["projections"] = of_projections
    new = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    return ids, task, distilled, new
