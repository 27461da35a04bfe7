"""Linear probe: classification by a linear head that is trained on the embeddings of pictures.

DIME-FM's protocol (arXiv 2303.18232, by ELEVATER's, 2204.08790), but for the one thing that makes
its toolkit's numbers too good: there the best epoch is chosen on the test data. Here learning rate,
weight decay and number of epochs are chosen on a part of the training data, the head is trained
again on all of it, and the test data are looked at once. Where pictures show several classes, the
loss is binary cross-entropy, its mean over the classes (an assumption), and the choice is by mean
average precision.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import classification
from aced.evaluators.average_precision import mean_average_precision
from aced.evaluators.classification import Truth
from aced.evaluators.config import EvalConfig, ProbeConfig
from aced.evaluators.embed import Embedder
from aced.models import two_tower
from aced.models.base import ModelConfig


class Head(NamedTuple):
    """Logits of the classes are `x @ kernel + bias`."""

    kernel: Float[Array, "d classes"]
    bias: Float[Array, " classes"]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        """Logits, as exact as float32 is, on TPUs too."""
        return jnp.matmul(x, self.kernel, precision=jax.lax.Precision.HIGHEST) + self.bias


class Examples(NamedTuple):
    """Features of pictures, and their classes: one of each, or whether it shows each."""

    x: Float[Array, "n d"]
    truth: Int[Array, " n"] | Bool[Array, "n classes"]


class LinearProbe:
    """Trained on `config.probe.data`, judged on `config.data`."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config, probe = config, config.probe
        self._test, self._train = open_source(config.data), open_source(probe.data)
        self._names = classification.class_names(config, self._test)
        there = classification.class_names(config, self._train)
        if there and self._names and there != self._names:
            raise ConfigError(
                f"The classes of {self._train.name}, on which the probe is trained, are not those "
                f"of {self._test.name}; set class_names of the evaluation if they are."
            )
        if probe.start == "text" and not self._names:
            raise ConfigError(
                f"A probe that starts from the classes' texts needs class names, and "
                f"{self._test.name} brings none; set class_names of the evaluation, or "
                "probe.start = 'zeros'."
            )
        if probe.start == "text":
            tokenizer = get_tokenizer(model.tokenizer)
            self._prompts = classification.Prompts(self._names, config.templates, tokenizer)
        self._embed = Embedder(config, model, mesh)
        training = dataclasses.replace(config, data=probe.data, max_examples=probe.max_examples)
        embed_train = Embedder(training, model, mesh)
        labelled = classification.Labelled
        self._pictures = labelled(config, self._test, self._names, self._embed)
        self._training = labelled(training, self._train, self._names, embed_train)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns what `classification.numbers` says of the test data, and what was chosen.

        That is `learning_rate`, `weight_decay`, `epochs` (0: the head as it starts) and
        `validation_top1`, the accuracy that they were chosen by, or `validation_map_11point`;
        `trained_on`, pictures.

        Raises:
            ConfigError: a data set has no labels, or others than the class names; or too few
                pictures to leave some out.
        """
        probe, names = self._config.probe, self._names
        zimg, truth = self._training(params)
        test, right = self._pictures(params)
        classes = len(names) or 1 + max(truth.max(), right.max())
        head = Head(np.zeros((zimg.shape[1], classes), np.float32), np.zeros(classes, np.float32))
        if probe.start == "text":
            scale, bias = map(np.asarray, two_tower.logit_parameters(params))
            weights = self._prompts.weights(self._embed, params)
            head = Head(scale * weights.T, np.full(classes, bias, np.float32))
        chosen, head = fit(zimg, truth, head, probe)
        found = classification.numbers(test @ head.kernel + head.bias, right)
        return found | chosen | {"trained_on": float(len(truth))}


def fit(
    zimg: Float[np.ndarray, "n d"], truth: Truth, head: Head, probe: ProbeConfig
) -> tuple[dict[str, float], Head]:
    """Searches on a part of the examples, trains on all; the choice, and a head for `zimg`.

    `head` is what it starts from, of features that are not standardised, as is the result. All
    processes get the same from the same.

    Raises:
        ConfigError: too few examples to leave some out.
    """
    n = len(truth)
    left_out = round(n * probe.validation_percent / 100)
    if not 0 < left_out < n:
        raise ConfigError(
            f"A linear probe cannot leave {probe.validation_percent:g} % of {n} labelled pictures "
            "out for its search; give it more, or change probe.validation_percent."
        )
    order = np.random.default_rng(probe.seed).permutation(n)
    kept, held = np.sort(order[left_out:]), np.sort(order[:left_out])
    key = jax.random.key(probe.seed)
    settings = list(itertools.product(probe.learning_rates, probe.weight_decays, [probe.momentum]))
    grid = np.array(settings, np.float32)
    scaling = Scaling.of(zimg[kept])
    quality = _search(
        key,
        scaling.standardise(zimg[kept], truth[kept]),
        scaling.into(head),
        grid,
        scaling.standardise(zimg[held], truth[held]),
        epochs=probe.epochs,
        size=probe.batch_size,
    )
    quality = np.asarray(quality)  # [epochs + 1, grid]
    # Of equal ones the first: the fewest epochs, then in the order of the settings.
    epochs, best = np.unravel_index(np.argmax(quality), quality.shape)
    scaling = Scaling.of(zimg)
    trained = _train(
        key,
        scaling.standardise(zimg, truth),
        scaling.into(head),
        grid[best],
        epochs,
        size=probe.batch_size,
    )
    learning_rate, weight_decay, _ = settings[best]
    chosen = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    by = "validation_top1" if truth.ndim == 1 else "validation_map_11point"
    chosen |= {"epochs": float(epochs), by: float(quality[epochs, best])}
    return chosen, scaling.out_of(trained)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """To features of mean 0 and variance 1 and back; a head says the same of either."""

    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, zimg: Float[np.ndarray, "n d"]) -> "Scaling":
        """The features' own; what never varies is left as wide as it is."""
        std = zimg.std(axis=0)
        return cls(zimg.mean(axis=0), np.where(std > 0, std, 1).astype(np.float32))

    def standardise(self, zimg: Float[np.ndarray, "n d"], truth: Truth) -> Examples:
        """The examples, standardised."""
        return Examples((zimg - self.mean) / self.std, truth)

    def into(self, head: Head) -> Head:
        """The head of standardised features that says what `head` says of the others."""
        return Head(head.kernel * self.std[:, None], head.bias + self.mean @ head.kernel)

    def out_of(self, head: Head) -> Head:
        """The inverse of `into`."""
        kernel = np.asarray(head.kernel) / self.std[:, None]
        return Head(kernel, np.asarray(head.bias) - self.mean @ kernel)


@functools.partial(jax.jit, static_argnames=("epochs", "size"))
def _search(
    key: PRNGKeyArray,
    train: Examples,
    head: Head,
    grid: Float[Array, "g 3"],
    held: Examples,
    *,
    epochs: int,
    size: int,
) -> Float[Array, "lengths g"]:
    """`_quality` on `held` after every number of epochs, by each of `grid`: learning rate,
    weight decay and momentum."""

    def one(setting: Float[Array, " 3"]) -> Float[Array, " lengths"]:
        state = head, _optimizer(setting).init(head)

        def epoch(state, number):
            state = _epoch(key, number, state, train, setting, size)
            return state, _quality(state[0], held, size)

        _, found = jax.lax.scan(epoch, state, jnp.arange(epochs))
        return jnp.concatenate([_quality(head, held, size)[None], found])

    return jax.vmap(one, out_axes=1)(grid)


@functools.partial(jax.jit, static_argnames="size")
def _train(
    key: PRNGKeyArray,
    train: Examples,
    head: Head,
    setting: Float[Array, " 3"],
    epochs: Int[Array, ""],
    *,
    size: int,
) -> Head:
    """The head after so many epochs."""
    state = head, _optimizer(setting).init(head)

    def body(number, state):
        return _epoch(key, number, state, train, setting, size)

    return jax.lax.fori_loop(0, epochs, body, state)[0]


def _optimizer(setting: Float[Array, " 3"]) -> optax.GradientTransformation:
    learning_rate, weight_decay, momentum = setting
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=Head(True, False)),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _epoch(
    key: PRNGKeyArray,
    number: Int[Array, ""],
    state: tuple[Head, optax.OptState],
    train: Examples,
    setting: Float[Array, " 3"],
    size: int,
) -> tuple[Head, optax.OptState]:
    """One pass over the examples, in an order of its own; the last batch may be a smaller one."""
    tx = _optimizer(setting)
    order = jax.random.permutation(jax.random.fold_in(key, number), len(train.truth))

    def step(state, rows):
        head, opt_state = state
        grads = jax.grad(_loss)(head, jax.tree.map(lambda x: x[rows], train), rows >= 0)
        updates, opt_state = tx.update(grads, opt_state, head)
        return (optax.apply_updates(head, updates), opt_state), None

    return jax.lax.scan(step, state, _batches(order, size))[0]


def _batches(order: Int[Array, " n"], size: int) -> Int[Array, "steps size"]:
    """Rows for each step; -1 fills the last one."""
    return jnp.pad(order, (0, -len(order) % size), constant_values=-1).reshape(-1, size)


def _loss(head: Head, batch: Examples, is_there: Array) -> Float[Array, ""]:
    """Mean cross-entropy of those that are there."""
    if batch.truth.ndim == 1:
        loss = optax.softmax_cross_entropy_with_integer_labels(head(batch.x), batch.truth)
    else:
        loss = optax.sigmoid_binary_cross_entropy(head(batch.x), batch.truth).mean(axis=1)
    return jnp.sum(loss * is_there) / jnp.sum(is_there)


def _quality(head: Head, examples: Examples, size: int) -> Float[Array, ""]:
    """What `classification.numbers` calls `top1`, or `map_11point` where classes are several.

    Logits are made in pieces: there may be many examples and classes.
    """
    n = len(examples.truth)
    if examples.truth.ndim == 2:
        logits = jax.lax.map(lambda rows: head(examples.x[rows]), _batches(jnp.arange(n), size))
        logits = logits.reshape(-1, logits.shape[-1])[:n]
        return mean_average_precision(logits, examples.truth).eleven_points

    def right(rows: Int[Array, " size"]) -> Int[Array, ""]:
        logits = head(examples.x[rows])
        own = jnp.take_along_axis(logits, examples.truth[rows][:, None], axis=1)
        return jnp.sum((jnp.sum(logits >= own, axis=1) == 1) & (rows >= 0))

    return jax.lax.map(right, _batches(jnp.arange(n), size)).sum() / n
