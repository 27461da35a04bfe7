"""The interface of a method: base classes of its config and of its train step."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from aced.bounds import NonNegativeInt
from aced.config import Checked, MayChange
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.methods.frozen import CheckpointOf, FrozenConfig
from aced.models.base import ModelConfig
from aced.optim.state import TrainState, apply_gradients
from aced.selection import scores
from aced.selection.scores import Terms

Batch = Metrics = dict[str, Array]
Loss = tuple[Float[Array, ""], Metrics]  # the loss and further metrics
Stepped = tuple[TrainState, Metrics]


@dataclasses.dataclass(frozen=True)
class MethodConfig(Checked):
    """Settings that every method has; a method's `name` and `model` come with its own."""

    # Examples per forward and backward pass over all devices; 0: all at once. Saves memory, takes
    # one more forward pass, and does not change the results.
    train_micro_batch: MayChange[NonNegativeInt] = 0

    @property
    def title(self) -> str:
        """The name of this configuration in the papers."""
        return self.name

    @property
    def selects(self) -> bool:
        """Whether the method selects a sub-batch, or else trains on the whole super-batch."""
        return False

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The kinds of evaluations that apply to the trained model; empty: all kinds."""
        return ()

    @property
    def score_micro_batch(self) -> int:
        """Examples embedded without gradient at a time; 0: all at once."""
        return self.train_micro_batch

    @property
    def frozen(self) -> dict[str, FrozenConfig]:
        """The frozen models in use, by name."""
        return {}

    @property
    def named(self) -> dict[str, FrozenConfig]:
        """The frozen models that `python -m aced.cache` can cache, by name."""
        return self.frozen

    def key_of(self, name: str) -> str:
        """The path in the config of a frozen model's settings."""
        return f"method.{name}"

    def towers_of(self, name: str) -> tuple[str, ...]:
        """The towers of a frozen model that the method uses."""
        del name
        return ("image", "text")

    def data_of(self, name: str, data: DataConfig) -> DataConfig:
        """The data that a frozen model embeds, given the data of the run."""
        del name
        return data

    def check_data(self, data: DataConfig) -> None:
        """Raises a ConfigError if the method cannot read the data of the run as `data` has it."""
        del data

    def super_batch_size(self, batch_size: int) -> int:
        """B, the candidates read per step, given b, the examples trained on.

        Raises:
            ConfigError: the sizes do not fit together.
        """
        return batch_size

    def for_batch(self, batch_size: int) -> "MethodConfig":
        """Returns the settings with defaults that depend on b filled in."""
        del batch_size
        return self

    def resolve(self, workdir: str) -> "MethodConfig":
        """Returns the settings completed from the frozen models' runs or caches.

        Raises:
            ConfigError: a run or a cache is missing, or sizes do not fit together.
        """
        resolved = {
            name: item.resolve(workdir, self.towers_of(name)) for name, item in self.frozen.items()
        }
        return self.with_frozen(resolved)

    def with_frozen(self, frozen: dict[str, FrozenConfig]) -> "MethodConfig":
        """Returns the settings with the given frozen models, by name."""
        del frozen
        return self


@dataclasses.dataclass(frozen=True)
class StepContext:
    """The parts of a train step that stay constant over a run."""

    tx: optax.GradientTransformation  # the optimizer
    ema_decay: float = 0.0  # of the moving average of parameters, where the state has one
    sources: Sequence[str] = ()  # names of a mixture's members, by their numbers in the batch

    def update(
        self, train_state: TrainState, loss_fn: Callable[[PyTree], Loss], metrics: Metrics
    ) -> Stepped:
        """Returns the state after one update, and the metrics of the whole step.

        `loss_fn` maps parameters to the loss and its metrics, to which `metrics` are added.
        """
        with jax.named_scope("gradient"):
            (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(train_state.params)
        with jax.named_scope("optimizer"):
            new_state, numbers = apply_gradients(
                train_state, self.tx, loss, grads, ema_decay=self.ema_decay
            )
        return new_state, {"loss": loss, **parts, **numbers, **metrics}

    def picks(self, batch: Batch, chosen: Batch, terms: Terms | None = None) -> Metrics:
        """Returns the ids of the sub-batch `chosen` of `batch`, and the metrics of `by_source`."""
        return {"picks": chosen["id"], **by_source(self.sources, batch, chosen, terms)}


def by_source(
    names: Sequence[str],
    batch: dict[str, Array],
    chosen: dict[str, Array],
    terms: Terms | None = None,
) -> dict[str, Float[Array, ""]]:
    """Metrics "sources/NAME/..." for each member of a mixture, by its index in `source`.

    `share` is the member's share of the super-batch, `picked_share` its share of the sub-batch.
    With `terms`, `score` is the mean score of the member's candidates by their matching pairs alone
    (the sigmoid loss of a pair, without negatives).

    Args:
        names: names of the members, in order; empty if the data are not a mixture.
        batch: the super-batch.
        chosen: the sub-batch.
        terms: terms of the score, for the super-batch.
    """
    if not names or "source" not in batch:
        return {}
    pair_scores = None
    if terms is not None:
        pair_scores = scores.combine(terms, [scores.sigmoid_nll(e) for _, e in terms])
    metrics = {}
    for number, name in enumerate(names):
        is_member = batch["source"] == number
        metrics[f"sources/{name}/share"] = is_member.mean(dtype=jnp.float32)
        picked = chosen["source"] == number
        metrics[f"sources/{name}/picked_share"] = picked.mean(dtype=jnp.float32)
        if pair_scores is not None:
            total = jnp.sum(jnp.where(is_member, pair_scores, 0.0))
            metrics[f"sources/{name}/score"] = total / jnp.maximum(is_member.sum(), 1)
    return metrics


class Method(abc.ABC):
    """A method.

    Attributes:
        config: the resolved settings.
        frozen: models that are loaded and run but never trained, by name.
        given: another model and the names of the parts that are copied from it; or None.
        fixed: regexes of parameters that are never trained.
        ahead: super-batches that are scored before they are trained on. Above 0, the method's part
            of the state is int32 [ahead 2 b], their picks (`aced.data.picks`), the next ones first.
    """

    config: MethodConfig
    frozen: dict[str, FrozenConfig]
    given: tuple[CheckpointOf, Sequence[str]] | None = None
    fixed: tuple[str, ...] = ()
    ahead: int = 0

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The models that run, by the prefix of their inputs in a batch; the learner's is ""."""
        return {"": self.config.model}

    @abc.abstractmethod
    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """The data streams that a step reads, by key prefix."""

    @abc.abstractmethod
    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""

    def flops_before(self, batch_size: int) -> int:
        """Floating point operations before the first step, by `score_first`."""
        del batch_size
        return 0

    def init_params(self, key: jax.Array) -> PyTree:
        """Random parameters: the model's, under "model", and others that are trained."""
        return {"model": self.config.model.init(key)}

    def init_memory(self, params: PyTree, batch_size: int) -> PyTree:
        """The method's own part of the initial train state."""
        del params, batch_size

    def start(self, params: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        """Returns the initial parameters of a new run, given random ones; jittable."""
        del frozen
        return params

    @abc.abstractmethod
    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; pure and jittable.

        Args:
            train_state: the learner's state and the method's own.
            frozen: parameters of the frozen models, by name.
            batch: the arrays of all streams.
            context: the parts of the step that stay constant.

        The metric `loss` is the loss that is differentiated, `picks` holds the ids [b] of the
        examples trained on, and all other metrics are scalars. With `ahead` there are also the
        picks [2 b] of the super-batch that was scored, under `aced.data.picks.AHEAD`.
        """

    def score_first(
        self, train_state: TrainState, frozen: PyTree, candidates: Batch, number: Int[Array, ""]
    ) -> TrainState:
        """Returns the initial state with the picks of one more of the first `ahead` super-batches.

        Pure and jittable; called in their order, and only with `ahead` above 0.

        Args:
            train_state: of a new run.
            frozen: parameters of the frozen models, by name.
            candidates: the stream `CANDIDATES` of super-batch `number`, without the prefix.
            number: of the super-batch, from 0.
        """
        raise NotImplementedError

    def warning(self, measured: Mapping[str, ArrayLike]) -> str:
        """A warning to the user about a step with these metrics; empty: none."""
        del measured
        return ""
