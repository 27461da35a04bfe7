"""What the loop asks of a method and of its settings; each method says where it differs.

A method is a pure step and a config: which models it holds, what it reads, and how one step goes.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from aced.bounds import NonNegativeInt
from aced.config import Checked, MayChange
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.methods.by_source import by_source
from aced.methods.frozen import CheckpointOf, FrozenConfig
from aced.models.base import ModelConfig
from aced.optim.state import TrainState, apply_gradients
from aced.selection.scores import Terms

Batch = Metrics = dict[str, Array]
Loss = tuple[Float[Array, ""], Metrics]  # what the gradient is of, and what else is logged
Stepped = tuple[TrainState, Metrics]


@dataclasses.dataclass(frozen=True)
class MethodConfig(Checked):
    """Settings that every method has; a method's `name` and `model` come with its own."""

    # Examples run with gradient at a time over all devices, 0: all at once. Memory for one piece,
    # and one more forward pass; no number changes.
    train_micro_batch: MayChange[NonNegativeInt] = 0

    @property
    def title(self) -> str:
        """What the papers call a run with these settings."""
        return self.name

    @property
    def selects(self) -> bool:
        """Whether a sub-batch is chosen; otherwise the whole super-batch is trained on."""
        return False

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The kinds of evaluations that say something of what is trained; none: all of them."""
        return ()

    @property
    def score_micro_batch(self) -> int:
        """Examples that are embedded without gradient at a time; 0: all at once."""
        return self.train_micro_batch

    @property
    def frozen(self) -> dict[str, FrozenConfig]:
        """The frozen models that these settings use, by name."""
        return {}

    @property
    def named(self) -> dict[str, FrozenConfig]:
        """The frozen models of which `python -m aced.cache` can make embeddings, by name."""
        return self.frozen

    def key_of(self, name: str) -> str:
        """Where the settings of a frozen model stand."""
        return f"method.{name}"

    def towers_of(self, name: str) -> tuple[str, ...]:
        """The towers of a frozen model whose embeddings are needed."""
        del name
        return ("image", "text")

    def data_of(self, name: str, data: DataConfig) -> DataConfig:
        """The data that a frozen model embeds, where the run's are `data`."""
        del name
        return data

    def super_batch_size(self, batch_size: int) -> int:
        """B, the candidates read for each step, given b, the examples trained on.

        Raises:
            ConfigError: the sizes do not fit together.
        """
        return batch_size

    def for_batch(self, batch_size: int) -> "MethodConfig":
        """Returns the same with what depends on b spelled out."""
        del batch_size
        return self

    def resolve(self, workdir: str) -> "MethodConfig":
        """Returns the same with what is to be read from the runs of frozen models, or their caches.

        Raises:
            ConfigError: a run or a cache is missing, or sizes do not fit together.
        """
        towers = self.towers_of
        found = {name: item.resolve(workdir, towers(name)) for name, item in self.frozen.items()}
        return self.with_frozen(found)

    def with_frozen(self, frozen: dict[str, FrozenConfig]) -> "MethodConfig":
        """Returns the same with these frozen models, by name."""
        del frozen
        return self


@dataclasses.dataclass(frozen=True)
class StepContext:
    """What is the same in every step of a run."""

    tx: optax.GradientTransformation  # the optimizer
    ema_decay: float = 0.0  # of the moving average of parameters, where the state has one
    sources: Sequence[str] = ()  # names of a mixture's members, by their numbers in the batch

    def update(
        self, train_state: TrainState, loss_fn: Callable[[PyTree], Loss], metrics: Metrics
    ) -> Stepped:
        """Returns the state after one update, and the metrics of the whole step.

        Args:
            train_state: the state before it.
            loss_fn: the loss of the parameters, and its metrics.
            metrics: what else there is to log.
        """
        with jax.named_scope("gradient"):
            (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(train_state.params)
        with jax.named_scope("optimizer"):
            new_state, numbers = apply_gradients(
                train_state, self.tx, loss, grads, ema_decay=self.ema_decay
            )
        return new_state, {"loss": loss, **parts, **numbers, **metrics}

    def picks(self, batch: Batch, chosen: Batch, terms: Terms | None = None) -> Metrics:
        """Returns the ids of the examples trained on, and the metrics of a mixture's members.

        Args:
            batch: what was read.
            chosen: the rows of it that are trained on.
            terms: what the score is made of; see `by_source`.
        """
        return {"picks": chosen["id"], **by_source(self.sources, batch, chosen, terms)}


class Method(abc.ABC):
    """A method.

    Attributes:
        config: its settings, resolved.
        frozen: models that are loaded and run but never trained, by name.
        given: another model, and the names of the parts of the model that are its parts; or None.
        fixed: regexes of parameters that are never trained.
    """

    config: MethodConfig
    frozen: dict[str, FrozenConfig]
    given: tuple[CheckpointOf, Sequence[str]] | None = None
    fixed: tuple[str, ...] = ()

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The models that run, by the prefix of what they see in a batch; the learner's is ""."""
        return {"": self.config.model}

    @abc.abstractmethod
    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """What a step reads, by key prefix."""

    @abc.abstractmethod
    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""

    def init_params(self, key: jax.Array) -> PyTree:
        """Parameters before step 0: those of the model, under "model", and what else is trained."""
        return {"model": self.config.model.init(key)}

    def init_memory(self, params: PyTree) -> PyTree:
        """What a state holds beside parameters and optimizer, before step 0."""
        del params

    def start(self, params: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        """Returns the parameters that a new run starts from, given random ones; jittable."""
        del frozen
        return params

    @abc.abstractmethod
    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; pure and jittable.

        Args:
            train_state: the learner, and what the method remembers.
            frozen: parameters of the frozen models by name.
            batch: what the streams give.
            context: what is the same in every step.

        The metric `loss` is what the gradient is of; `picks` the ids [b] of the examples trained
        on; all others are scalars.
        """

    def warning(self, measured: Mapping[str, ArrayLike]) -> str:
        """What a user should know of a step with these metrics; empty: nothing."""
        del measured
        return ""
