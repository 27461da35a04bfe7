"""Fine-tuning of CoCa on a task (arXiv 2205.01917): answers, or captions.

- answers: a head chooses one of `model.classes`. VQA: 3,129 answers to questions; visual
  entailment: 3 classes of a statement about a picture; NLVR2: 2 classes of a statement about
  `model.pictures` = 2 pictures. The data are pictures with a text and a label.
- captioning: the next word of a caption, without the contrastive loss.

What a task asks of a model, and what is made of its answer, are functions that OPTIMA uses, too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from aced.config import ConfigError
from aced.cost import flops
from aced.data.batch_spec import View
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.losses import captioning
from aced.methods.base import Batch, Loss, Method, MethodConfig, StepContext, Stepped
from aced.models import coca
from aced.models.coca import CoCaConfig
from aced.optim.state import TrainState
from aced.outputs import Words
from aced.parallel.micro_batch import map_micro_batches

Task = Literal["answers", "captioning"]


@dataclasses.dataclass(frozen=True)
class CoCaTaskConfig(MethodConfig):
    """Settings of the method `coca_task`."""

    name: str = "coca_task"
    model: CoCaConfig = CoCaConfig()
    task: Task = "answers"

    def _check(self) -> None:
        super()._check()
        check(self.task, self.model)


def check(task: Task, model: CoCaConfig) -> None:
    """Refuses a model that cannot do the task.

    Raises:
        ConfigError: see above.
    """
    if task == "answers" and model.classes < 2:
        raise ConfigError(
            f"method.task = 'answers' chooses from method.model.classes = {model.classes}; set it "
            "to the number of answers (VQA 3129, visual entailment 3, NLVR2 2)."
        )
    if task == "captioning" and model.classes:
        raise ConfigError("method.task = 'captioning' never reads method.model.classes; set it 0.")


@struct.dataclass
class Answers:
    """What a model says of a batch: one of both. Every field is a tree, as in `TrainState`."""

    logits: PyTree = None  # [b c] of the answers
    states: PyTree = None  # [b l d] of the words of captions
    kernel: PyTree = None  # [d v] of the words' softmax

    def frozen(self) -> "Answers":
        """The same numbers, through which no gradient flows."""
        return jax.lax.stop_gradient(self)


def streams(task: Task, model: CoCaConfig, data: DataConfig, rows: int) -> dict[str, Stream]:
    """What a step of the task reads."""
    views = View.of(model).of_pictures(model.pictures)
    return {"": Stream(data, rows, views, {}, needs=("label",) if task == "answers" else ())}


def run(
    task: Task,
    model: CoCaConfig,
    params: PyTree,
    images: Sequence[Array],
    text: Int[Array, "b l"],
    *,
    hidden: bool = False,
) -> tuple[Answers, dict[str, Array] | None]:
    """Returns what the model says and, if asked for, what its blocks give: see `coca.forward`."""
    if task == "answers":
        if not hidden:
            return Answers(logits=coca.answer(model, params, images, text)), None
        logits, states = coca.answer_with_hidden(model, params, images, text)
        return Answers(logits=logits), states
    out = coca.forward(model, params, *images, text, hidden=hidden)
    return Answers(states=out.words.states, kernel=out.words.kernel), out.hidden


@struct.dataclass
class TaskLosses:
    """Averages over the examples with a known label, or over the real words."""

    task: Float[Array, ""]
    accuracy: Float[Array, ""]
    kl: Float[Array, ""] | None = None  # times T^2; None without a teacher


def losses(
    said: Answers,
    batch: Batch,
    real: Bool[Array, "b l"],
    teacher: Answers | None = None,
    *,
    temperature: float = 2.0,
) -> TaskLosses:
    """The task's cross-entropy and, with a teacher, KL(teacher || student) at a temperature.

    Args:
        said: by the model.
        batch: `label` [b], -1 where it is not known; or `text` [b l], the captions.
        real: which of their words are no padding.
        teacher: what it says of the same batch. No gradient reaches it.
        temperature: of both softmaxes; the divergence is multiplied by its square.
    """
    if said.logits is None:
        words = [Words(a.states, a.kernel) for a in (said, teacher) if a is not None]
        of_words = captioning.word_losses(
            words[0], batch["text"], real, *words[1:], temperature=temperature
        )
        return TaskLosses(of_words.cross_entropy, of_words.accuracy, of_words.kl)
    label = batch["label"]
    known = (label >= 0).astype(jnp.float32)

    def mean(x: Float[Array, " b"]) -> Float[Array, ""]:
        return (known * x).sum() / jnp.maximum(known.sum(), 1)

    kl = None
    if teacher is not None:
        kl = mean(captioning.divergence(said.logits, teacher.frozen().logits, temperature))
    # A label beyond the classes gives NaN, which the loop stops at.
    nll = captioning.cross_entropy(said.logits, jnp.maximum(label, 0))
    right = said.logits.argmax(axis=-1) == label
    return TaskLosses(mean(nll), mean(right.astype(jnp.float32)), kl)


def unused(task: Task) -> str:
    """Which parameters no task, or not this one, has a gradient of: left as pretraining left them.

    Weight decay alone would ruin the contrastive head.
    """
    words = "" if task == "captioning" else "|text/softmax/.*"
    return f"model/({coca.CONTRASTIVE_ONLY}{words})"


def macs(task: Task, model: CoCaConfig) -> int:
    """MACs of a forward pass of one example."""
    parts = flops.macs_coca(model)
    return parts.answering(model.pictures) if task == "answers" else parts.captioning


class CoCaTask(Method):
    """The method: one model, one task."""

    def __init__(self, config: CoCaTaskConfig):
        self.config = config
        self.frozen = {}
        self.fixed = (unused(config.task),)

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """What a step reads: pictures with texts and, for answers, labels."""
        return streams(self.config.task, self.config.model, data, candidates)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""
        return flops.step_flops([(macs(self.config.task, self.config.model), batch_size)])

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; see `Method`.

        `batch` holds `image`, `text`, `id` and, by the task, `label` and `second/image`.
        """
        del frozen
        config = self.config

        def loss_fn(params: PyTree) -> Loss:
            said = self._said(params["model"], batch)
            found = losses(said, batch, coca.real_words(batch["text"], config.model.text.eos_id))
            return found.task, {"loss/task": found.task, "accuracy": found.accuracy}

        return context.update(train_state, loss_fn, context.picks(batch, batch))

    def _said(self, params: PyTree, batch: Batch) -> Answers:
        """What the model says, piece by piece."""
        config = self.config

        def rows(piece: tuple) -> Answers:
            return run(config.task, config.model, params, *piece)[0].replace(kernel=None)

        pieces, size = coca.inputs(config.model, batch), config.train_micro_batch
        said = map_micro_batches(rows, pieces, size, "method.train_micro_batch")
        return said.replace(kernel=params["text"]["softmax"]["kernel"])
