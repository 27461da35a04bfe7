"""OPTIMA: distils CoCa module by module, with a bandit that chooses the module (arXiv 2310.04550).

    L = task + logits_weight * KL + sum over the played modules m of weight_m * L_m

The task loss and the KL of the words or answers are those of `aced.methods.coca_task`; L_m are the
layerwise losses (`aced.losses.layerwise`) of image encoder, unimodal and multimodal decoder. An arm
is a module or a set of modules; a pull is `pull_steps` steps with one arm. The reward of a pull is
the decrease of the modules' losses, measured on the first batch after the pull: the parameters from
before and after the pull are compared on examples that neither has been trained on.

All arms share one compiled program; the arm is a number in the state. We had access to the paper's
abstract and introduction only; comments on the settings mark our choices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct
from jaxtyping import Array, PyTree

from aced.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError
from aced.cost import flops
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.losses import layerwise
from aced.losses.layerwise import Errors, LayerMap
from aced.methods import bandit, coca_task
from aced.methods.bandit import BanditConfig, BanditState
from aced.methods.base import Batch, Loss, Method, MethodConfig, StepContext, Stepped
from aced.methods.coca_task import Answers, Task
from aced.methods.frozen import TrainedCoCaConfig
from aced.models import coca
from aced.models.coca import MODULES, CoCaConfig
from aced.optim.state import TrainState
from aced.parallel import rules
from aced.parallel.micro_batch import map_micro_batches

TEACHER = "teacher"
Arms = Literal["single", "subsets", "all", "none"]


@dataclasses.dataclass(frozen=True)
class LayerWeights(Checked):
    """Weights of the modules' losses. These are means over elements and small: use 5 to 100."""

    image: NonNegativeFloat = 10.0
    unimodal: NonNegativeFloat = 10.0
    multimodal: NonNegativeFloat = 10.0

    @property
    def of_modules(self) -> tuple[float, ...]:
        """The weights in the order of `MODULES`."""
        return tuple(getattr(self, module) for module in MODULES)


@dataclasses.dataclass(frozen=True)
class OptimaConfig(MethodConfig):
    """Settings of the method `optima`."""

    name: str = "optima"
    # The student. Its vocabulary, answers, head and embedding width are replaced by the teacher's;
    # patches and resolution must equal the teacher's.
    model: CoCaConfig = CoCaConfig()
    teacher: TrainedCoCaConfig = TrainedCoCaConfig()  # fine-tuned on the task
    task: Task = "answers"
    logits_weight: NonNegativeFloat = 1.0  # weight of the KL; our interpretation
    temperature: PositiveFloat = 2.0  # of the KL
    layer_weights: LayerWeights = LayerWeights()  # our interpretation
    # Layers of the teacher that the student's are paired with: spread evenly, or the last ones.
    layer_map: LayerMap = "uniform"
    # Whether to start from these layers of the teacher, and its other parts, where widths agree.
    init_from_teacher: bool = True
    # "single": one module per arm; "subsets": every set of modules. Baselines: "all" modules at
    # every step, and "none", which leaves the layerwise losses out.
    arms: Arms = "single"
    bandit: BanditConfig = BanditConfig()
    pull_steps: PositiveInt = 100  # P; our interpretation
    # Modules whose decrease in loss is the reward of a pull: "all", or only the "played" ones. The
    # abstract allows both; our interpretation.
    reward: Literal["all", "played"] = "all"

    def _check(self) -> None:
        super()._check()
        if self.bandit.fixed_arm >= len(self.played):
            raise ConfigError(
                f"method.bandit.fixed_arm = {self.bandit.fixed_arm}, but method.arms = "
                f"{self.arms!r} has the arms 0 to {len(self.played) - 1}: {', '.join(self.names)}."
            )

    @property
    def played(self) -> tuple[tuple[int, ...], ...]:
        """The indices of the modules that each arm distils."""
        sets = bandit.subsets(len(MODULES))
        arms = {"single": sets[: len(MODULES)], "subsets": sets, "all": sets[-1:], "none": ((),)}
        return arms[self.arms]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arms."""
        return tuple("+".join(MODULES[m] for m in arm) or "none" for arm in self.played)

    @property
    def frozen(self) -> dict[str, TrainedCoCaConfig]:
        """The teacher."""
        return {TEACHER: self.teacher}

    @property
    def named(self) -> dict[str, TrainedCoCaConfig]:
        """Empty: the teacher's hidden states are too large to cache."""
        return {}

    def resolve(self, workdir: str) -> "OptimaConfig":
        """Returns the settings with the teacher's architecture, and the student to match.

        Raises:
            ConfigError: the teacher is missing, or the student does not match it.
        """
        if not self.teacher.checkpoint:
            raise ConfigError(
                "method.teacher.checkpoint is empty; set it to the workdir of a CoCa that was "
                "trained on the task with the method 'coca_task'."
            )
        return super().resolve(workdir)

    def with_frozen(self, frozen: dict[str, TrainedCoCaConfig]) -> "OptimaConfig":
        """Returns the settings with the given teacher, and the student to match."""
        teacher = frozen[TEACHER]
        coca_task.check(self.task, teacher.model)
        return dataclasses.replace(self, model=student(self.model, teacher.model), teacher=teacher)


def student(model: CoCaConfig, teacher: CoCaConfig) -> CoCaConfig:
    """Returns `model` with the teacher's vocabulary, answers, embedding width and preprocessing.

    Raises:
        ConfigError: patches, resolution or pooling differ, or the student has more layers.
    """
    text = dataclasses.replace(
        model.text,
        vocab_size=teacher.text.vocab_size,
        length=teacher.text.length,
        eos_id=teacher.text.eos_id,
    )
    image, teacher_image = model.image, teacher.image
    for key, ours, theirs in (
        ("image.pool", image.pool, teacher_image.pool),
        ("queries > 0", model.queries > 0, teacher.queries > 0),
    ):
        if ours != theirs:
            raise ConfigError(
                f"Student and teacher must read pictures in the same way: method.model.{key} is "
                f"{ours}, but the teacher's is {theirs}; set it to that."
            )
    if (image.resolution, image.patch) != (teacher_image.resolution, teacher_image.patch):
        raise ConfigError(
            "Hidden states are matched token by token: method.model.image.resolution and .patch = "
            f"{image.resolution}, {image.patch} must be the teacher's, "
            f"{teacher_image.resolution}, {teacher_image.patch}."
        )
    for module, ours, theirs in zip(MODULES, _depths(model), _depths(teacher), strict=True):
        if ours > theirs:
            raise ConfigError(
                f"The student's {module} module has {ours} layers, and the teacher's has only "
                f"{theirs}."
            )
    return dataclasses.replace(
        model,
        text=text,
        tokenizer=teacher.tokenizer,
        resize=teacher.resize,
        embed_dim=teacher.embed_dim,
        classes=teacher.classes,
        head_hidden=teacher.head_hidden,
        pictures=teacher.pictures,
    )


def _depths(model: CoCaConfig) -> tuple[int, ...]:
    return model.image.dims.depth, model.text.unimodal, model.text.multimodal


@struct.dataclass
class Pull:
    """OPTIMA's part of the train state. Every field is a tree, as in `TrainState`."""

    bandit: BanditState
    arm: PyTree  # int32 []; of the current pull
    reward: PyTree  # float32 []; of the previous pull
    began: PyTree  # the parameters at the start of the current pull


class Optima(Method):
    """The method `optima`."""

    def __init__(self, config: OptimaConfig):
        if config.teacher.model is None:
            raise ConfigError(
                "The teacher is not known; set method.teacher.checkpoint to the workdir of a "
                "CoCa that was trained on the task."
            )
        self.config = config
        self.frozen = config.frozen
        self.fixed = (coca_task.unused(config.task),)
        self._arms = np.zeros((len(config.played), len(MODULES)), np.float32)
        for row, modules in zip(self._arms, config.played, strict=True):
            row[list(modules)] = 1

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """The streams of the task; both models see the same inputs."""
        return coca_task.streams(self.config.task, self.config.model, data, candidates)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`.

        A reward takes two more forward passes of each model, amortised over the steps of a pull.
        """
        config = self.config
        student = coca_task.macs(config.task, config.model) + self._macs_projections()
        teacher = coca_task.macs(config.task, config.teacher.model)
        step = flops.step_flops([(student, batch_size)], [(teacher, batch_size)])
        reward = flops.step_flops([], [(student + teacher, 2 * batch_size)])
        return step + reward // config.pull_steps

    def _macs_projections(self) -> int:
        model, teacher = self.config.model, self.config.teacher.model
        words, k = min(model.tokenizer.length, model.text.length), model.pictures
        tokens = k * model.image.tokens, words + 2, k * words
        text = model.text.dims.width * teacher.text.dims.width
        widths = model.image.dims.width * teacher.image.dims.width, text, text
        return sum(
            depth * n * d for depth, n, d in zip(_depths(model), tokens, widths, strict=True)
        )

    def init_params(self, key: jax.Array) -> PyTree:
        """Random parameters: the student's, and projections of its hidden states."""
        model_key, *keys = jax.random.split(key, 1 + len(MODULES))
        model, teacher = self.config.model, self.config.teacher.model
        text = model.text.dims.width, teacher.text.dims.width
        widths = (model.image.dims.width, teacher.image.dims.width), text, text
        projections = {
            module: layerwise.init_projections(k, depth, *pair)
            for module, k, depth, pair in zip(MODULES, keys, _depths(model), widths, strict=True)
        }
        return super().init_params(model_key) | {"projections": projections}

    def init_memory(self, params: PyTree, batch_size: int) -> Pull:
        """The bandit before the first pull."""
        del batch_size
        return Pull(
            bandit=bandit.init(len(self._arms)),
            arm=jnp.int32(0),
            reward=jnp.float32(0),
            began=jax.tree.map(jnp.zeros_like, params),
        )

    def start(self, params: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        """The student, initialised from the teacher wherever widths agree."""
        if not self.config.init_from_teacher:
            return params
        model = from_teacher(params["model"], frozen[TEACHER], self.config.layer_map)
        return params | {"model": model}

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; see `Method`.

        `batch` is the batch of the task; see `CoCaTask.train_step`.
        """
        config, teacher = self.config, frozen[TEACHER]
        pull = self._next_pull(train_state, teacher, batch)
        on = jnp.asarray(self._arms)[pull.arm]
        weights = on * jnp.asarray(config.layer_weights.of_modules)

        def loss_fn(params: PyTree) -> Loss:
            student, targets, errors = self._compare(params, teacher, batch)
            real = coca_task.predicted(config.model, batch)
            values = coca_task.losses(student, batch, real, targets, temperature=config.temperature)
            layers = errors.means()
            loss = values.task + config.logits_weight * values.kl + (weights * layers).sum()
            parts = {"loss/task": values.task, "loss/kl": values.kl, "accuracy": values.accuracy}
            return loss, parts | _by_name("loss", MODULES, layers)

        mean, width = bandit.posterior(pull.bandit, config.bandit)
        metrics = {
            "bandit/arm": pull.arm,
            "bandit/reward": pull.reward,
            **_by_name("bandit/played", MODULES, on),
            **_by_name("bandit/mean", config.names, mean),
            **_by_name("bandit/width", config.names, width),
            **_by_name("bandit/pulls", config.names, pull.bandit.pulls),
            **context.picks(batch, batch),
        }
        new_state, metrics = context.update(train_state, loss_fn, metrics)
        return new_state.replace(method=pull), metrics

    def _next_pull(self, train_state: TrainState, teacher: PyTree, batch: Batch) -> Pull:
        """The current pull, or a new one after rewarding the current one."""
        config, step = self.config, train_state.step

        def rewarded(pull: Pull) -> Pull:
            # One program, run twice: rewards are rare, and compiling is slow.
            both = jax.tree.map(lambda *p: jnp.stack(p), pull.began, train_state.params)
            before, after = jax.lax.map(lambda p: self._compare(p, teacher, batch)[2].means(), both)
            counted = jnp.asarray(self._arms)[pull.arm] if config.reward == "played" else 1.0
            # Relative to the module's own loss, so scales cancel. NaN when no module was played;
            # treated as 0.
            raw = jnp.average((before - after) / before, weights=counted * jnp.ones(len(before)))
            arms, reward = bandit.normalise(pull.bandit, raw, config.bandit)
            arms = bandit.update(arms, pull.arm, reward, config.bandit)
            return pull.replace(bandit=arms, reward=reward)

        def begin(pull: Pull) -> Pull:
            pull = jax.lax.cond(step > 0, rewarded, lambda pull: pull, pull)
            key = jax.random.fold_in(train_state.key, step)
            arm = bandit.choose(pull.bandit, key, config.bandit)
            return pull.replace(arm=arm, began=train_state.params)

        begins = step % config.pull_steps == 0
        return jax.lax.cond(begins, begin, lambda pull: pull, train_state.method)

    def _compare(
        self, params: PyTree, teacher: PyTree, batch: Batch
    ) -> tuple[Answers, Answers, Errors]:
        """Outputs of student and teacher, and errors of hidden states, in micro-batches."""
        config, model = self.config, self.config.model

        def rows(piece: tuple) -> tuple[Answers, Answers, Errors]:
            real = coca.real_words(piece[1], model.text.eos_id)
            student, hidden = coca_task.run(
                config.task, model, params["model"], *piece, hidden=True
            )
            targets, teacher_hidden = coca_task.run(
                config.task, config.teacher.model, teacher, *piece, hidden=True
            )
            errors = layerwise.errors(
                hidden,
                teacher_hidden,
                params["projections"],
                layerwise.tokens_of(real, model.image.tokens),
                config.layer_map,
            )
            return student.replace(kernel=None), targets.frozen().replace(kernel=None), errors

        pieces, size = coca.inputs(model, batch), config.train_micro_batch
        student, targets, errors = map_micro_batches(rows, pieces, size, "method.train_micro_batch")
        student = student.replace(kernel=params["model"]["text"]["softmax"]["kernel"])
        return student, targets.replace(kernel=teacher["text"]["softmax"]["kernel"]), errors


def from_teacher(student: PyTree, teacher: PyTree, pairing: LayerMap) -> PyTree:
    """Returns the student's parameters, replaced by the teacher's wherever shapes agree.

    Stacked blocks take the layers that `layerwise.layer_map` pairs with the student's.
    """
    stacks = ("image/blocks/", "text/unimodal/", "text/multimodal/")
    copied = []

    def leaf(path: tuple, own: Array, other: Array) -> Array:
        if own.shape[1:] == other.shape[1:] and rules.name_of(path).startswith(stacks):
            other = other[jnp.asarray(layerwise.layer_map(len(own), len(other), pairing))]
        copied.append(own.size * (own.shape == other.shape))
        return other.astype(own.dtype) if own.shape == other.shape else own

    out = jax.tree.map_with_path(leaf, student, teacher)
    share = sum(copied) / sum(x.size for x in jax.tree.leaves(student))
    logging.info("%.1f %% of the student's parameters are copied from the teacher.", 100 * share)
    return out


def _by_name(prefix: str, names: Sequence[str], values: Array) -> dict[str, Array]:
    return {f"{prefix}/{name}": values[i] for i, name in enumerate(names)}
