"""OPTIMA: CoCa is distilled module by module, and a bandit chooses the module (arXiv 2310.04550).

    L = task + logits_weight * KL + sum over the played modules m of weight_m * L_m

with the task's own loss and the words' or answers' KL (`aced.methods.coca_task`) and the layerwise
losses L_m (`aced.losses.layerwise`) of image encoder, unimodal and multimodal decoder. An arm is a
module or a set of them; a pull is `pull_steps` steps with one arm. Its reward is how much the
modules' losses have fallen since the pull began, on the batch that comes next: parameters from then
and from now are measured on the same examples, which neither has been trained on.

All arms are the same program: what is played is a number in the state, and changes nothing else.
Of the paper only abstract and introduction could be read; the settings say what is our reading.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct
from jaxtyping import Array, Bool, PyTree

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
from aced.parallel.micro_batch import map_micro_batches

TEACHER = "teacher"
Arms = Literal["single", "subsets", "all", "none"]


@dataclasses.dataclass(frozen=True)
class LayerWeights(Checked):
    """Weights of the modules' losses, which average over elements and so are small: 5 to 100."""

    image: NonNegativeFloat = 10.0
    unimodal: NonNegativeFloat = 10.0
    multimodal: NonNegativeFloat = 10.0

    @property
    def of_modules(self) -> tuple[float, ...]:
        """In the order of `MODULES`."""
        return tuple(getattr(self, module) for module in MODULES)


@dataclasses.dataclass(frozen=True)
class OptimaConfig(MethodConfig):
    """Settings of the method `optima`."""

    name: str = "optima"
    # The student. Words, answers, head and embeddings are the teacher's, whatever is here; patches
    # and resolution must be.
    model: CoCaConfig = CoCaConfig()
    teacher: TrainedCoCaConfig = TrainedCoCaConfig()  # fine-tuned on the task
    task: Task = "answers"
    logits_weight: NonNegativeFloat = 1.0  # of the KL; our reading
    temperature: PositiveFloat = 2.0  # of the KL
    layer_weights: LayerWeights = LayerWeights()  # our reading
    # Which layers of the teacher the student's are paired with: spread evenly, or the last ones.
    layer_map: LayerMap = "uniform"
    # Start from those layers of the teacher, and from its other parts, wherever widths agree.
    init_from_teacher: bool = True
    # "single": a module each; "subsets": every set of modules. Baselines: "all" modules at every
    # step, and "none", which leaves the layerwise losses out.
    arms: Arms = "single"
    bandit: BanditConfig = BanditConfig()
    pull_steps: PositiveInt = 100  # P; our reading
    # Whose losses' fall a pull is worth: those of "all" modules, or of the "played" ones alone,
    # which is as well what the abstract says; our reading.
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
        """Of every arm, the numbers of the modules that are distilled while it is played."""
        every = bandit.subsets(len(MODULES))
        arms = {"single": every[: len(MODULES)], "subsets": every, "all": every[-1:], "none": ((),)}
        return arms[self.arms]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arms."""
        return tuple("+".join(MODULES[m] for m in arm) or "none" for arm in self.played)

    @property
    def frozen(self) -> dict[str, TrainedCoCaConfig]:
        """The frozen models by name: the teacher."""
        return {TEACHER: self.teacher}

    @property
    def named(self) -> dict[str, TrainedCoCaConfig]:
        """None of which embeddings could be kept: a teacher gives hidden states."""
        return {}

    def resolve(self, workdir: str) -> "OptimaConfig":
        """Returns the same with the teacher's architecture, and the student's that follows.

        Raises:
            ConfigError: there is no teacher, or it and the student do not go together.
        """
        if not self.teacher.checkpoint:
            raise ConfigError(
                "method.teacher.checkpoint is empty; set it to the workdir of a CoCa that was "
                "trained on the task with the method 'coca_task'."
            )
        return super().resolve(workdir)

    def with_frozen(self, frozen: dict[str, TrainedCoCaConfig]) -> "OptimaConfig":
        """Returns the same with this teacher, and the student that follows from it."""
        teacher = frozen[TEACHER]
        coca_task.check(self.task, teacher.model)
        return dataclasses.replace(self, model=student(self.model, teacher.model), teacher=teacher)


def student(model: CoCaConfig, teacher: CoCaConfig) -> CoCaConfig:
    """Returns `model` with the teacher's words, answers, embeddings and preprocessing.

    Raises:
        ConfigError: it would cut or read pictures otherwise, or has more layers.
    """
    text = dataclasses.replace(
        model.text,
        vocab_size=teacher.text.vocab_size,
        length=teacher.text.length,
        eos_id=teacher.text.eos_id,
    )
    own, other = model.image, teacher.image
    for key, ours, theirs in (
        ("image.pool", own.pool, other.pool),
        ("queries > 0", model.queries > 0, teacher.queries > 0),
    ):
        if ours != theirs:
            raise ConfigError(
                f"Student and teacher read pictures alike: method.model.{key} is {ours}, and the "
                f"teacher's is {theirs}; set it to that."
            )
    if (own.resolution, own.patch) != (other.resolution, other.patch):
        raise ConfigError(
            "Hidden states are matched token by token: method.model.image.resolution and .patch = "
            f"{own.resolution}, {own.patch} must be the teacher's, {other.resolution}, "
            f"{other.patch}."
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
    """What OPTIMA remembers. Every field is a tree, as in `TrainState`."""

    bandit: BanditState
    arm: PyTree  # int32 []; that is played
    reward: PyTree  # float32 []; of the pull before this one
    began: PyTree  # the parameters when this pull began


class Optima(Method):
    """The method: which models it holds, what it reads, and its train step."""

    def __init__(self, config: OptimaConfig):
        if config.teacher.model is None:
            raise ConfigError(
                "The teacher is not known; set method.teacher.checkpoint to the workdir of a "
                "CoCa that was trained on the task."
            )
        self.config = config
        self.frozen = config.frozen
        self.fixed = (coca_task.unused(config.task),)
        arms = np.zeros((len(config.played), len(MODULES)), np.float32)
        for row, modules in zip(arms, config.played, strict=True):
            row[list(modules)] = 1
        self._arms = arms

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """What a step reads: what the task reads; both models see the same."""
        return coca_task.streams(self.config.task, self.config.model, data, candidates)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`.

        A reward takes two more forward passes of each model, shared among the steps of a pull.
        """
        config = self.config
        own, other = coca_task.macs(config.task, config.model), self._macs_teacher()
        trained = [(own + self._macs_projections(), batch_size)]
        step = flops.step_flops(trained, [(other, batch_size)])
        probe = flops.step_flops([], [(own + self._macs_projections() + other, 2 * batch_size)])
        return step + probe // config.pull_steps

    def _macs_teacher(self) -> int:
        return coca_task.macs(self.config.task, self.config.teacher.model)

    def _macs_projections(self) -> int:
        model, teacher = self.config.model, self.config.teacher.model
        words, k = min(model.tokenizer.length, model.text.length), model.pictures
        tokens = k * model.image.tokens, words + 2, k * words
        of_text = model.text.dims.width * teacher.text.dims.width
        widths = model.image.dims.width * teacher.image.dims.width, of_text, of_text
        return sum(
            depth * n * d for depth, n, d in zip(_depths(model), tokens, widths, strict=True)
        )

    def init_params(self, key: jax.Array) -> PyTree:
        """Parameters before step 0: the student's, and the projections of its hidden states."""
        model_key, *keys = jax.random.split(key, 1 + len(MODULES))
        model, teacher = self.config.model, self.config.teacher.model
        text = model.text.dims.width, teacher.text.dims.width
        widths = (model.image.dims.width, teacher.image.dims.width), text, text
        projections = {
            module: layerwise.init_projections(k, depth, *pair)
            for module, k, depth, pair in zip(MODULES, keys, _depths(model), widths, strict=True)
        }
        return super().init_params(model_key) | {"projections": projections}

    def init_memory(self, params: PyTree) -> Pull:
        """The bandit, before the first pull."""
        return Pull(
            bandit=bandit.init(len(self._arms)),
            arm=jnp.int32(0),
            reward=jnp.float32(0),
            began=jax.tree.map(jnp.zeros_like, params),
        )

    def start(self, params: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        """The student with those layers and parts of the teacher that have its widths."""
        if not self.config.init_from_teacher:
            return params
        model = from_teacher(params["model"], frozen[TEACHER], self.config.layer_map)
        return params | {"model": model}

    # The step.

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics; see `Method`.

        `batch` is that of the task; see `aced.methods.coca_task`.
        """
        config, teacher = self.config, frozen[TEACHER]
        pull = self._next_pull(train_state, teacher, batch)
        on = jnp.asarray(self._arms)[pull.arm]
        weights = on * jnp.asarray(config.layer_weights.of_modules)

        def loss_fn(params: PyTree) -> Loss:
            said, taught, errors = self._compare(params, teacher, batch)
            found = coca_task.losses(
                said, batch, self._real(batch), taught, temperature=config.temperature
            )
            layers = errors.means()
            loss = found.task + config.logits_weight * found.kl + (weights * layers).sum()
            parts = {"loss/task": found.task, "loss/kl": found.kl, "accuracy": found.accuracy}
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
        """The pull that this step belongs to: the present one, or, rewarding that, a new one."""
        config, step = self.config, train_state.step

        def rewarded(pull: Pull) -> Pull:
            # By one program, twice: rewards are rare, and compiling takes long.
            both = jax.tree.map(lambda *p: jnp.stack(p), pull.began, train_state.params)
            before, after = jax.lax.map(lambda p: self._compare(p, teacher, batch)[2].means(), both)
            counted = jnp.asarray(self._arms)[pull.arm] if config.reward == "played" else 1.0
            # Relative to each one's own: no module's scale matters. Of no module it is not a
            # number, which counts as 0.
            raw = jnp.average((before - after) / before, weights=counted * jnp.ones(len(before)))
            known, reward = bandit.normalise(pull.bandit, raw, config.bandit)
            known = bandit.update(known, pull.arm, reward, config.bandit)
            return pull.replace(bandit=known, reward=reward)

        def begin(pull: Pull) -> Pull:
            pull = jax.lax.cond(step > 0, rewarded, lambda pull: pull, pull)
            key = jax.random.fold_in(train_state.key, step)
            arm = bandit.choose(pull.bandit, key, config.bandit)
            return pull.replace(arm=arm, began=train_state.params)

        begins = step % config.pull_steps == 0
        return jax.lax.cond(begins, begin, lambda pull: pull, train_state.method)

    def _real(self, batch: Batch) -> Bool[Array, "b l"]:
        return coca.real_words(batch["text"], self.config.model.text.eos_id)

    def _compare(
        self, params: PyTree, teacher: PyTree, batch: Batch
    ) -> tuple[Answers, Answers, Errors]:
        """What student and teacher say, and how far their hidden states are, piece by piece."""
        config, model = self.config, self.config.model

        def rows(piece: tuple) -> tuple[Answers, Answers, Errors]:
            real = coca.real_words(piece[1], model.text.eos_id)
            said, own = coca_task.run(config.task, model, params["model"], *piece, hidden=True)
            taught, other = coca_task.run(
                config.task, config.teacher.model, teacher, *piece, hidden=True
            )
            errors = layerwise.errors(
                own,
                other,
                params["projections"],
                layerwise.tokens_of(real, model.image.tokens),
                config.layer_map,
            )
            return said.replace(kernel=None), taught.frozen().replace(kernel=None), errors

        said, taught, errors = map_micro_batches(
            rows,
            coca.inputs(model, batch),
            config.train_micro_batch,
            "method.train_micro_batch",
        )
        kernels = (tree["text"]["softmax"]["kernel"] for tree in (params["model"], teacher))
        said, taught = (a.replace(kernel=k) for a, k in zip((said, taught), kernels, strict=True))
        return said, taught, errors


def from_teacher(student: PyTree, teacher: PyTree, how: LayerMap) -> PyTree:
    """Returns the student's parameters, with the teacher's wherever shapes agree.

    Of stacked blocks, those layers that `layerwise.layer_map` pairs with the student's.
    """

    taken = []

    def one(path: tuple, own: Array, other: Array) -> Array:
        if own.shape[1:] == other.shape[1:] and _is_stacked(path):
            other = other[jnp.asarray(layerwise.layer_map(len(own), len(other), how))]
        taken.append(own.size * (own.shape == other.shape))
        return other.astype(own.dtype) if own.shape == other.shape else own

    out = jax.tree.map_with_path(one, student, teacher)
    share = sum(taken) / sum(x.size for x in jax.tree.leaves(student))
    logging.info("%.1f %% of the student's numbers are the teacher's to begin with.", 100 * share)
    return out


def _is_stacked(path: tuple) -> bool:
    names = jax.tree_util.keystr(path, simple=True, separator="/")
    return names.startswith(("image/blocks/", "text/unimodal/", "text/multimodal/"))


def _by_name(prefix: str, names: Sequence[str], values: Array) -> dict[str, Array]:
    return {f"{prefix}/{name}": values[i] for i, name in enumerate(names)}
