"""IID, KD, ACID and ACED: one step, told apart by configuration alone (arXiv 2411.18674).

    L = L_contrastive[B_CE] + weight * L_KD[B_KD]

| method            | weight | B_CE: selection.score             | B_KD                  |
| ----------------- | ------ | --------------------------------- | --------------------- |
| IID               | 0      | all, selection.filter_ratio = 0   | -                     |
| hard learner      | 0      | hard_learner                      | -                     |
| I-ACID            | 0      | easy_reference                    | -                     |
| H-ACID            | 0      | learnability                      | -                     |
| softmax-KD, ...   | > 0    | all, selection.filter_ratio = 0   | the same              |
| ACED-IIDistill    | > 0    | learnability                      | IID, batch = "iid"    |
| ACED-ACIDistill   | > 0    | learnability                      | the same              |

The reference scores the super-batch; teachers are distilled from. Both are frozen two-tower
models of their own size, tokenizer, resolution and temperature, and one may be the other.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from aced import flops, state
from aced.config import ConfigError
from aced.embeddings import Embeddings
from aced.losses import contrastive, distillation
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.parallel.mesh import constrain_by_example
from aced.parallel.micro_batch import map_micro_batches
from aced.selection import SelectionConfig, scores, select, take

REFERENCE = "reference"


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """The second term of the loss. ACED's weight was swept over 0.5, 1, 2 (remembered)."""

    weight: float = 0.0  # lambda; 0 leaves the term out
    loss: Literal["softmax", "sigmoid", "feature"] = "softmax"
    batch: Literal["selected", "iid"] = "selected"  # B_KD: ACIDistill or IIDistill
    # Names in method.teachers, or "reference". The losses of several are averaged, which for
    # softmax- and sigmoid-KD is the loss against their average probabilities.
    teachers: tuple[str, ...] = (REFERENCE,)


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Settings of the method `contrastive`."""

    name: str = "contrastive"
    model: two_tower.TwoTowerConfig = two_tower.TwoTowerConfig()
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    reference: FrozenConfig = FrozenConfig()  # scores candidates; unused where no score needs it
    # Models to distil from, by name; those that distillation.teachers leaves out are not loaded.
    teachers: dict[str, FrozenConfig] = dataclasses.field(default_factory=dict)
    selection: SelectionConfig = SelectionConfig(filter_ratio=0.0)
    distillation: DistillationConfig = DistillationConfig()
    score_micro_batch: int = 0  # examples scored at a time over all devices; 0: all at once

    def __post_init__(self):
        if self.score_micro_batch < 0:
            raise ConfigError("method.score_micro_batch must be at least 0, which is: all at once.")
        names = set(self.teachers) | {REFERENCE}
        if REFERENCE in self.teachers:
            raise ConfigError("A teacher may not be called 'reference'; list it by that name only.")
        if self.distillation.weight < 0:
            raise ConfigError("method.distillation.weight must not be negative.")
        if self.distillation.weight > 0 and not self.distillation.teachers:
            raise ConfigError("method.distillation.weight > 0 needs method.distillation.teachers.")
        for name in self.distillation.teachers:
            if name not in names:
                raise ConfigError(
                    f"method.distillation.teachers names {name!r}; known: {sorted(names)}."
                )

    @property
    def selects(self) -> bool:
        """Whether the sub-batch is chosen; otherwise the whole super-batch is trained on."""
        return self.selection.filter_ratio > 0

    @property
    def reference_scores(self) -> bool:
        """Whether the score is made of the reference's losses, too."""
        return self.selects and scores.needs(self.selection.score, REFERENCE)

    @property
    def frozen(self) -> dict[str, FrozenConfig]:
        """The frozen models that these settings use, by name."""
        needed = set(self.distillation.teachers) if self.distillation.weight > 0 else set()
        needed |= {REFERENCE} if self.reference_scores else set()
        named = {REFERENCE: self.reference, **self.teachers}
        return {name: named[name] for name in sorted(needed)}

    def super_batch_size(self, batch_size: int) -> int:
        """B, the candidates read for each step, given b, the examples trained on.

        Raises:
            ConfigError: the sizes do not fit together.
        """
        return self.selection.super_batch_size(batch_size) if self.selects else batch_size

    def resolve(self, workdir: str) -> "ContrastiveConfig":
        """Returns the same with the architectures of the frozen models read from their runs."""
        frozen = {name: item.resolve(workdir) for name, item in self.frozen.items()}
        return dataclasses.replace(
            self,
            reference=frozen.get(REFERENCE, self.reference),
            teachers={name: frozen.get(name, item) for name, item in self.teachers.items()},
        )


class Contrastive:
    """The method: which models it holds, what it reads, and its train step."""

    def __init__(self, config: ContrastiveConfig):
        self.config = config
        self.model = two_tower.TwoTower(config.model)
        self.distils = config.distillation.weight > 0
        self.distils_apart = self.distils and config.selects and config.distillation.batch == "iid"
        self.frozen = config.frozen
        for name, item in self.frozen.items():
            if item.model is None:
                where = "method.reference" if name == REFERENCE else f"method.teachers.{name}"
                raise ConfigError(
                    f"The method needs the frozen model {name!r}; set {where}.checkpoint to the "
                    "workdir of a finished run."
                )

    # What the method asks of the loop.

    @property
    def models(self) -> dict[str, two_tower.TwoTowerConfig]:
        """The models by the prefix of what they see in a batch; the learner's is empty."""
        frozen = {_prefix(name): item.model for name, item in self.frozen.items()}
        return {"": self.config.model} | frozen

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step, scoring included; see `aced.flops`."""
        config = self.config
        candidates = config.super_batch_size(batch_size)
        learner_scores = config.selects and scores.needs(config.selection.score, "learner")
        frozen = []
        for name, item in self.frozen.items():
            all_of_them = name == REFERENCE and config.reference_scores
            frozen.append((sum(flops.macs(item.model)), candidates if all_of_them else batch_size))
        return flops.step_flops(
            sum(flops.macs(config.model)),
            trained=batch_size * (2 if self.distils_apart else 1),
            scored=candidates if learner_scores else 0,
            frozen=frozen,
        )

    def init_params(self, key: jax.Array) -> PyTree:
        """Parameters before step 0: the learner's, and projections where features are matched."""
        model_key, projection_key = jax.random.split(key)
        params = {"model": two_tower.init(self.config.model, model_key)}
        if self.distils and self.config.distillation.loss == "feature":
            params["projections"] = {}
            for i, name in enumerate(self.config.distillation.teachers):
                params["projections"][name] = distillation.init_projection(
                    jax.random.fold_in(projection_key, i),
                    self.config.model.width,
                    self.frozen[name].model.width,
                )
        return params

    # The step.

    def train_step(
        self,
        train_state: state.TrainState,
        frozen: dict[str, PyTree],
        batch: dict[str, Array],
        *,
        tx: optax.GradientTransformation,
        ema_decay: float = 0.0,
    ) -> tuple[state.TrainState, dict[str, Array]]:
        """Returns the state after one step on the super-batch `batch`, and its metrics.

        Args:
            train_state: the learner.
            frozen: parameters of the frozen models by name.
            batch: arrays [B ...]: `image`, `text`, `id`, views of other models by prefix.
            tx: the optimizer.
            ema_decay: decay of the moving average of parameters, where the state has one.

        Pure and jittable. The metric `picks` is the array [b] of the ids trained on.
        """
        chosen, iid, metrics = self._choose(train_state, frozen, batch)

        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], dict[str, Array]]:
            learner = self._learner(params, chosen.batch)
            task = contrastive.LOSSES[self.config.loss](learner)
            parts = {
                "loss/contrastive": task,
                "scale": learner.scale,
                "bias": learner.bias,
            }
            if not self.distils:
                return task, parts
            student = learner if iid is chosen else self._learner(params, iid.batch)
            teachers = self._teachers(frozen, iid)
            distilled = distillation.distillation_loss(
                self.config.distillation.loss, student, teachers, params.get("projections")
            )
            parts["loss/distillation"] = distilled
            return task + self.config.distillation.weight * distilled, parts

        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(train_state.params)
        new_state, update = state.apply_gradients(train_state, tx, loss, grads, ema_decay=ema_decay)
        return new_state, {"loss": loss, **parts, **update, **metrics}

    def _choose(
        self, train_state: state.TrainState, frozen: dict[str, PyTree], batch: dict[str, Array]
    ) -> tuple["_SubBatch", "_SubBatch", dict[str, Array]]:
        """B_CE and B_KD out of the super-batch; the same object where they are the same."""
        if not self.config.selects:
            whole = _SubBatch(batch, None)
            return whole, whole, {"picks": batch["id"], **_noise(batch, batch)}
        config = self.config.selection
        candidates = batch["id"].shape[0]
        size = config.sub_batch_size(candidates)
        learner = reference = None
        if scores.needs(config.score, "learner"):
            learner = self._scored(self._learner, train_state.params, batch)
        if self.config.reference_scores:
            embed = self._frozen_embedder(REFERENCE)
            reference = self._scored(embed, frozen[REFERENCE], batch)
        key = jax.random.fold_in(train_state.key, train_state.step)
        selection = select(key, learner, reference, config, loss=self.config.loss, size=size)
        chosen = _sub_batch(batch, reference, selection.ids, config.strata)
        metrics = {
            **selection.metrics,
            "picks": chosen.batch["id"],
            **_noise(batch, chosen.batch),
        }
        if not self.distils_apart:
            return chosen, chosen, metrics
        first = _first_of_each_stratum(candidates, size, config.strata)
        return chosen, _sub_batch(batch, reference, first, config.strata), metrics

    def _scored(self, embed, params: PyTree, batch: dict[str, Array]) -> Embeddings:
        """Embeddings of the super-batch, in micro-batches, without gradient."""
        params = jax.lax.stop_gradient(params)
        inputs = {k: v for k, v in batch.items() if k.endswith(("image", "text"))}

        def rows(piece: dict[str, Array]) -> tuple[Array, Array]:
            e = embed(params, piece)
            return e.zimg, e.ztxt

        zimg, ztxt = map_micro_batches(rows, inputs, self.config.score_micro_batch)
        scale, bias = two_tower.logit_parameters(params.get("model", params))
        return Embeddings(zimg, ztxt, scale, bias).frozen()

    def _learner(self, params: PyTree, batch: dict[str, Array]) -> Embeddings:
        return self.model.apply({"params": params["model"]}, batch["image"], batch["text"])

    def _frozen_embedder(self, name: str):
        model = two_tower.TwoTower(self.frozen[name].model)
        prefix = _prefix(name)

        def embed(params: PyTree, batch: dict[str, Array]) -> Embeddings:
            image = batch.get(f"{prefix}image", batch["image"])
            text = batch.get(f"{prefix}text", batch["text"])
            return model.apply({"params": params}, image, text)

        return embed

    def _teachers(self, frozen: dict[str, PyTree], part: "_SubBatch") -> dict[str, Embeddings]:
        """The teachers' embeddings of B_KD; the reference's are re-used where it has scored."""
        teachers = {}
        for name in self.config.distillation.teachers:
            if name == REFERENCE and part.reference is not None:
                teachers[name] = part.reference
            else:
                teachers[name] = self._frozen_embedder(name)(frozen[name], part.batch).frozen()
        return teachers


@dataclasses.dataclass(frozen=True)
class _SubBatch:
    """Some rows of the super-batch, with the reference's embeddings of them if it has scored."""

    batch: dict[str, Array]
    reference: Embeddings | None


def _sub_batch(
    batch: dict[str, Array], reference: Embeddings | None, ids: Int[Array, " b"], strata: int
) -> _SubBatch:
    rows = {name: constrain_by_example(take(x, ids, strata)) for name, x in batch.items()}
    if reference is not None:
        reference = reference.replace(
            zimg=take(reference.zimg, ids, strata), ztxt=take(reference.ztxt, ids, strata)
        )
    return _SubBatch(rows, reference)


def _first_of_each_stratum(candidates: int, size: int, strata: int) -> Int[Array, " b"]:
    """The first b/strata rows of every stratum: uniform, since the super-batch is shuffled."""
    starts = jnp.arange(strata) * (candidates // strata)
    return (starts[:, None] + jnp.arange(size // strata)).reshape(size)


def _noise(batch: dict[str, Array], chosen: dict[str, Array]) -> dict[str, Array]:
    """How noisy the picks are, where the source knows."""
    if "is_noisy" not in batch:
        return {}
    return {
        "selection/noisy_share": chosen["is_noisy"].mean(dtype=jnp.float32),
        "selection/noisy_share_super_batch": batch["is_noisy"].mean(dtype=jnp.float32),
    }


def _prefix(name: str) -> str:
    return "reference/" if name == REFERENCE else f"teacher/{name}/"
