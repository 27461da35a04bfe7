"""Fine-tuning of CoCa on a task (arXiv 2205.01917): answering or captioning.

- answers: a head chooses one of `model.classes`. VQA: 3,129 answers to questions; visual
  entailment: 3 classes for a statement about an image; NLVR2: 2 classes for a statement about
  `model.pictures` = 2 images. The data are images with a text and a label, or with the answers of
  several people, which are then soft targets.
- captioning: predicts the next word of a caption, without the contrastive loss.
- words: predicts the next word of an answer, after the question; any answer can be written.

OPTIMA shares the functions of this module.
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

Task = Literal["answers", "captioning", "words"]


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
    """Raises a ConfigError if the model cannot do the task."""
    if task == "answers" and model.classes < 2:
        raise ConfigError(
            f"method.task = 'answers' chooses from method.model.classes = {model.classes}; set it "
            "to the number of answers (VQA 3129, visual entailment 3, NLVR2 2)."
        )
    if task != "answers" and model.classes:
        raise ConfigError(f"method.task = '{task}' reads no method.model.classes; set it to 0.")


@struct.dataclass
class Answers:
    """Outputs for a batch: logits of answers, or states and kernel of words.

    Every field is a tree, as in `TrainState`.
    """

    logits: PyTree = None  # [b c] of the answers
    states: PyTree = None  # [b l d] of the words of captions
    kernel: PyTree = None  # [d v] of the words' softmax

    def frozen(self) -> "Answers":
        """The same values, with gradients stopped."""
        return jax.lax.stop_gradient(self)


def streams(task: Task, model: CoCaConfig, data: DataConfig, rows: int) -> dict[str, Stream]:
    """The streams that a step of the task reads."""
    views = View.of(model).of_pictures(model.pictures)
    views[""] = dataclasses.replace(views[""], answers=task == "words")
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
    """Returns the model's outputs and, with `hidden`, its hidden states; see `coca.forward`."""
    if task == "answers":
        if not hidden:
            return Answers(logits=coca.answer(model, params, images, text)), None
        logits, states = coca.answer_with_hidden(model, params, images, text)
        return Answers(logits=logits), states
    out = coca.forward(model, params, *images, text, hidden=hidden)
    return Answers(states=out.words.states, kernel=out.words.kernel), out.hidden


def predicted(model: CoCaConfig, batch: Batch) -> Bool[Array, "b l"]:
    """Mask of the words to predict: no padding and, of a question and its answer, the answer."""
    real = coca.real_words(batch["text"], model.text.eos_id)
    if "given" not in batch:
        return real
    return real & (jnp.arange(real.shape[1]) >= batch["given"][:, None])


@struct.dataclass
class TaskLosses:
    """Averages over the labelled examples, or over the words that are not padding."""

    task: Float[Array, ""]
    accuracy: Float[Array, ""]  # of answers by several people, VQA's soft accuracy
    kl: Float[Array, ""] | None = None  # times T^2; None without a teacher


def losses(
    student: Answers,
    batch: Batch,
    real: Bool[Array, "b l"],
    teacher: Answers | None = None,
    *,
    temperature: float = 2.0,
) -> TaskLosses:
    """The task's cross-entropy and, with a teacher, KL(teacher || student) at a temperature.

    With several right answers, the targets of the cross-entropy are their degrees, divided by the
    sum of these.

    Args:
        student: outputs of the model.
        batch: `label` [b], -1 where unknown, and optionally `answer_ids` [b k] and
            `answer_scores` [b k], see `aced.data.answers.Targets`; or `text` [b l], the captions.
        real: mask of the words to predict, from `predicted`.
        teacher: the teacher's outputs for the same batch; it gets no gradient.
        temperature: T of both softmaxes; the divergence is multiplied by T^2.
    """
    if student.logits is None:
        words = [Words(a.states, a.kernel) for a in (student, teacher) if a is not None]
        averages = captioning.word_losses(
            words[0], batch["text"], real, *words[1:], temperature=temperature
        )
        return TaskLosses(averages.cross_entropy, averages.accuracy, averages.kl)
    ids, degrees = targets(batch)
    total = degrees.sum(axis=1)
    known = (total > 0).astype(jnp.float32)

    def mean(x: Float[Array, " b"]) -> Float[Array, ""]:
        return (known * x).sum() / jnp.maximum(known.sum(), 1)

    kl = None
    if teacher is not None:
        kl = mean(captioning.divergence(student.logits, teacher.frozen().logits, temperature))
    share = degrees / jnp.where(total > 0, total, 1)[:, None]
    nll = sum(
        # A class outside the model's gives NaN, which stops the run.
        share[:, i] * captioning.cross_entropy(student.logits, jnp.maximum(ids[:, i], 0))
        for i in range(ids.shape[1])
    )
    chosen = ids == student.logits.argmax(axis=-1)[:, None]
    return TaskLosses(mean(nll), mean(jnp.where(chosen, degrees, 0).sum(axis=1)), kl)


def targets(batch: Batch) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """The right answers of each example, and the degree in [0, 1] to which each is right.

    These are the classes among the answers that people gave. For an example without such classes it
    is the label, to the degree 1. Without a label, too, all degrees are 0.
    """
    label = batch["label"][:, None]
    own = (label >= 0).astype(jnp.float32)
    if "answer_ids" not in batch:
        return label, own
    ids, degrees = batch["answer_ids"], batch["answer_scores"]
    is_given = degrees.sum(axis=1, keepdims=True) > 0
    return jnp.concatenate([ids, label], axis=1), jnp.concatenate(
        [degrees, jnp.where(is_given, 0.0, own)], axis=1
    )


def unused(task: Task) -> str:
    """Regex of the parameters that the task does not train; they are frozen, not decayed."""
    words = "|text/softmax/.*" if task == "answers" else ""
    return f"model/({coca.CONTRASTIVE_ONLY}{words})"


def macs(task: Task, model: CoCaConfig) -> int:
    """MACs of a forward pass for one example."""
    parts = flops.macs_coca(model)
    return parts.answering(model.pictures) if task == "answers" else parts.captioning


class CoCaTask(Method):
    """The method: one model, one task."""

    def __init__(self, config: CoCaTaskConfig):
        self.config = config
        self.frozen = {}
        self.fixed = (unused(config.task),)

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """One stream: images with texts and, for answers, labels."""
        return streams(self.config.task, self.config.model, data, candidates)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""
        return flops.step_flops([(macs(self.config.task, self.config.model), batch_size)])

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; see `Method`.

        `batch` holds `image`, `text`, `id` and, by the task, `label`, `given`, `second/image`.
        """
        del frozen
        config = self.config

        def loss_fn(params: PyTree) -> Loss:
            real = predicted(config.model, batch)
            values = losses(self._outputs(params["model"], batch), batch, real)
            return values.task, {"loss/task": values.task, "accuracy": values.accuracy}

        return context.update(train_state, loss_fn, context.picks(batch, batch))

    def _outputs(self, params: PyTree, batch: Batch) -> Answers:
        """The model's outputs, in micro-batches."""
        config = self.config

        def rows(piece: tuple) -> Answers:
            return run(config.task, config.model, params, *piece)[0].replace(kernel=None)

        pieces, size = coca.inputs(config.model, batch), config.train_micro_batch
        outputs = map_micro_batches(rows, pieces, size, "method.train_micro_batch")
        return outputs.replace(kernel=params["text"]["softmax"]["kernel"])
