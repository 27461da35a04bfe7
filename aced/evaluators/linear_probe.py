"""Linear probe: classification by a linear head trained on image embeddings.

DIME-FM's protocol (arXiv 2303.18232, after ELEVATER, 2204.08790), with one difference: the ELEVATER
toolkit chooses the best epoch on the test data. Here learning rate, weight decay and number of
epochs are chosen on a part of the training data, the head is trained again on all of it, and the
test data are evaluated once. If images show several classes, the loss is binary cross-entropy,
averaged over the classes (our assumption), and settings are chosen by mean average precision.
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
from aced.evaluators.classification import Truth
from aced.evaluators.config import EvalConfig, ProbeConfig
from aced.evaluators.embed import Embedder
from aced.models import two_tower
from aced.models.base import ModelConfig


class Head(NamedTuple):
    """A linear head with logits `x @ kernel + bias`."""

    kernel: Float[Array, "d classes"]
    bias: Float[Array, " classes"]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        """Logits, computed in full float32 precision."""
        return jnp.matmul(x, self.kernel, precision=jax.lax.Precision.HIGHEST) + self.bias


class Examples(NamedTuple):
    """Features of images, and their class index or a mask of their classes."""

    x: Float[Array, "n d"]
    truth: Int[Array, " n"] | Bool[Array, "n classes"]


class LinearProbe:
    """Trains on `config.probe.data` and evaluates on `config.data`."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config, probe = config, config.probe
        self._test, self._train = open_source(config.data), open_source(probe.data)
        self._names = classification.class_names(config, self._test)
        train_names = classification.class_names(config, self._train)
        if train_names and self._names and train_names != self._names:
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
            templates = classification.templates(config, self._test)
            self._prompts = classification.Prompts(self._names, templates, tokenizer)
        self._embed = Embedder(config, model, mesh)
        training = dataclasses.replace(config, data=probe.data, max_examples=probe.max_examples)
        embed_train = Embedder(training, model, mesh)
        labelled = classification.Labelled
        self._pictures = labelled(config, self._test, self._names, self._embed)
        self._training = labelled(training, self._train, self._names, embed_train)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `classification.numbers` of the test data, and the chosen settings.

        These are `learning_rate`, `weight_decay`, `epochs` (0: the initial head), the
        `validation_top1` or `validation_map_11point` that they were chosen by, and `trained_on`,
        the number of training images.

        Raises:
            ConfigError: a data set has no labels, or labels without a class name, or too few images
                for a validation split.
        """
        probe, names = self._config.probe, self._names
        zimg, truth, _ = self._training(params)
        test, right, group = self._pictures(params)
        classes = len(names) or 1 + max(truth.max(), right.max())
        head = Head(np.zeros((zimg.shape[1], classes), np.float32), np.zeros(classes, np.float32))
        if probe.start == "text":
            scale, bias = map(np.asarray, two_tower.logit_parameters(params))
            weights = self._prompts.weights(self._embed, params)
            head = Head(scale * weights.T, np.full(classes, bias, np.float32))
        chosen, head = fit(zimg, truth, head, probe)
        scores = test @ head.kernel + head.bias
        metrics = classification.numbers(scores, right, group, samples=self._config.bootstrap)
        return metrics | chosen | {"trained_on": float(len(truth))}


def fit(
    zimg: Float[np.ndarray, "n d"], truth: Truth, head: Head, probe: ProbeConfig
) -> tuple[dict[str, float], Head]:
    """Chooses settings on a validation split, then trains on all examples. Deterministic.

    Args:
        zimg: embeddings.
        truth: their classes.
        head: the initial head, for features that are not standardised.
        probe: the settings.

    Returns:
        The chosen settings, and the trained head, for features that are not standardised.

    Raises:
        ConfigError: too few examples for a validation split.
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
    # Ties go to the fewest epochs, then to the first setting.
    epochs, best = np.unravel_index(np.argmax(quality), quality.shape)
    scaling = Scaling.of(zimg)
    train = scaling.standardise(zimg, truth)
    trained = _train(key, train, scaling.into(head), grid[best], epochs, size=probe.batch_size)
    learning_rate, weight_decay, _ = settings[best]
    chosen = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    by = "validation_top1" if truth.ndim == 1 else "validation_map_11point"
    chosen |= {"epochs": float(epochs), by: float(quality[epochs, best])}
    return chosen, scaling.out_of(trained)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Maps features to mean 0 and variance 1, and heads between both kinds of features."""

    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, zimg: Float[np.ndarray, "n d"]) -> "Scaling":
        """The scaling of `zimg`; constant features keep their scale."""
        std = zimg.std(axis=0)
        return cls(zimg.mean(axis=0), np.where(std > 0, std, 1).astype(np.float32))

    def standardise(self, zimg: Float[np.ndarray, "n d"], truth: Truth) -> Examples:
        """The examples, standardised."""
        return Examples((zimg - self.mean) / self.std, truth)

    def into(self, head: Head) -> Head:
        """The equivalent of `head` for standardised features."""
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
    """`_quality` on `held` after each epoch, for each (learning rate, weight decay, momentum)."""

    def qualities(setting: Float[Array, " 3"]) -> Float[Array, " lengths"]:
        state = head, _optimizer(setting).init(head)

        def epoch(state, number):
            state = _epoch(key, number, state, train, setting, size)
            return state, _quality(state[0], held, size)

        _, after = jax.lax.scan(epoch, state, jnp.arange(epochs))
        return jnp.concatenate([_quality(head, held, size)[None], after])

    return jax.vmap(qualities, out_axes=1)(grid)


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
    """The head after `epochs` epochs."""
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
    """One pass over the examples in random order; the last batch may be smaller."""
    tx = _optimizer(setting)
    order = jax.random.permutation(jax.random.fold_in(key, number), len(train.truth))

    def step(state, rows):
        head, opt_state = state
        grads = jax.grad(_loss)(head, jax.tree.map(lambda x: x[rows], train), rows >= 0)
        updates, opt_state = tx.update(grads, opt_state, head)
        return (optax.apply_updates(head, updates), opt_state), None

    return jax.lax.scan(step, state, _batches(order, size))[0]


def _batches(order: Int[Array, " n"], size: int) -> Int[Array, "steps size"]:
    """The rows of each step; the last step is padded with -1."""
    return jnp.pad(order, (0, -len(order) % size), constant_values=-1).reshape(-1, size)


def _loss(head: Head, batch: Examples, is_real: Array) -> Float[Array, ""]:
    """Mean cross-entropy of the rows that are not padding."""
    if batch.truth.ndim == 1:
        loss = optax.softmax_cross_entropy_with_integer_labels(head(batch.x), batch.truth)
    else:
        loss = optax.sigmoid_binary_cross_entropy(head(batch.x), batch.truth).mean(axis=1)
    return jnp.sum(loss * is_real) / jnp.sum(is_real)


def _quality(head: Head, examples: Examples, size: int) -> Float[Array, ""]:
    """`top1` of `classification.numbers` or, for several classes per image, `map_11point`.

    Logits are computed in pieces, to limit memory.
    """
    n = len(examples.truth)
    if examples.truth.ndim == 2:
        logits = jax.lax.map(lambda rows: head(examples.x[rows]), _batches(jnp.arange(n), size))
        logits = logits.reshape(-1, logits.shape[-1])[:n]
        return mean_average_precision(logits, examples.truth)

    def right(rows: Int[Array, " size"]) -> Int[Array, ""]:
        logits = head(examples.x[rows])
        own = jnp.take_along_axis(logits, examples.truth[rows][:, None], axis=1)
        return jnp.sum((jnp.sum(logits >= own, axis=1) == 1) & (rows >= 0))

    return jax.lax.map(right, _batches(jnp.arange(n), size)).sum() / n


def mean_average_precision(
    scores: Float[Array, "n classes"], shown: Bool[Array, "n classes"]
) -> Float[Array, ""]:
    """`map_11point` of `classification.numbers`, where settings are searched on the device.

    It is averaged over the classes that occur; 0 if none does. Every score is a threshold, so equal
    scores count together and the order of images is irrelevant.
    """
    precisions = jax.vmap(_average_precision, in_axes=1)(scores, shown)
    occurs = shown.any(axis=0)
    return jnp.sum(precisions * occurs) / jnp.maximum(occurs.sum(), 1)


def _average_precision(scores: Float[Array, " n"], shown: Bool[Array, " n"]) -> Float[Array, ""]:
    order = jnp.argsort(-scores)
    scores, right = scores[order], jnp.cumsum(shown[order])
    is_last = jnp.append(scores[:-1] != scores[1:], True)  # of equal scores
    precision = jnp.where(is_last, right / jnp.arange(1, len(scores) + 1), 0.0)
    # The best precision at a recall of at least k / 10, compared in integers.
    reaches = 10 * right[None] >= jnp.arange(11)[:, None] * right[-1]
    return jnp.max(jnp.where(reaches, precision, 0.0), axis=1).mean()
