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
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from aced import flops, state
from aced.config import ConfigError
from aced.embeddings import Embeddings
from aced.losses import contrastive, distillation
from aced.methods import scoring
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig
from aced.models import two_tower
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
    # How the losses meet all pairs of a batch: "ring" passes embeddings from device to device and
    # keeps no logits; "full" holds each device's rows of the b x b logits. The same numbers.
    form: Literal["ring", "full"] = "ring"
    # Examples embedded at a time over all devices, 0: all at once. Neither changes a number.
    score_micro_batch: int = 0  # without gradient, to choose from
    train_micro_batch: int = 0  # with gradient: memory for one piece, and one more forward pass
    # How the models run when they score. What is trained on is always computed in full, but for
    # one example in so many (0: none): a learner that scores with larger patches or shorter texts
    # has to learn to. JEST's Flexi trains half of the batch so (2), and needs a quarter (4).
    scoring: ScoringConfig = ScoringConfig()
    reference_scoring: ScoringConfig = ScoringConfig()
    multi_resolution_every: int = 0

    def __post_init__(self):
        for name in ("score_micro_batch", "train_micro_batch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"method.{name} must be at least 0, which is: all at once.")
        if self.multi_resolution_every not in (0, *range(2, 1025)):
            raise ConfigError(
                "method.multi_resolution_every must be 0 (none) or 2 to 1024 (one example in so "
                f"many), got {self.multi_resolution_every}."
            )
        if self.multi_resolution_every and self.scoring.view.exact:
            raise ConfigError(
                "method.multi_resolution_every trains what method.scoring.patch and .text_length "
                "score with, and neither is set; set one, or set it to 0."
            )
        self.scoring.check(self.model)
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

    def for_batch(self, batch_size: int) -> "ContrastiveConfig":
        """Returns the same with what depends on b spelled out: the strata of selection."""
        if not self.selects:
            return self
        return dataclasses.replace(self, selection=self.selection.for_batch(batch_size))

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
        self.distils = config.distillation.weight > 0
        self.distils_apart = self.distils and config.selects and config.distillation.batch == "iid"
        self.frozen = config.frozen
        for name, item in self.frozen.items():
            if name == REFERENCE and item.model is not None:
                config.reference_scoring.check(item.model, "method.reference_scoring")
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
        trained = batch_size * (2 if self.distils_apart else 1)
        own = sum(flops.macs(config.model))
        every = config.multi_resolution_every
        seen = sum(scoring.macs(config.model, config.scoring))
        as_scored = trained // every if every else 0
        with_gradient = [(own, trained - as_scored), (seen, as_scored)]
        forward = []
        if config.selects and scores.needs(config.selection.score, "learner"):
            forward.append((seen, candidates))
        if config.reference_scores:
            model = self.frozen[REFERENCE].model
            forward.append((sum(scoring.macs(model, config.reference_scoring)), candidates))
        for name in self._run_on_sub_batch:
            forward.append((sum(flops.macs(self.frozen[name].model)), batch_size))
        return flops.step_flops(with_gradient, forward)

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

    @property
    def _run_on_sub_batch(self) -> tuple[str, ...]:
        """Teachers to run on B_KD: all but a reference that has embedded it already, in full."""
        if not self.distils:
            return ()
        known = self.config.reference_scores and self.config.reference_scoring.exact
        names = self.config.distillation.teachers
        return tuple(name for name in names if not (name == REFERENCE and known))

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
            task = contrastive.LOSSES[self.config.loss](learner, form=self.config.form)
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
                self.config.distillation.loss,
                student,
                teachers,
                params.get("projections"),
                form=self.config.form,
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
            model, how = self.config.model, self.config.scoring
            learner = self._scored(model, how, train_state.params["model"], batch, "")
        if self.config.reference_scores:
            model, how = self.frozen[REFERENCE].model, self.config.reference_scoring
            reference = self._scored(model, how, frozen[REFERENCE], batch, _prefix(REFERENCE))
        key = jax.random.fold_in(train_state.key, train_state.step)
        selection = select(key, learner, reference, config, loss=self.config.loss, size=size)
        # In the order of the super-batch, which is the same whichever device holds which part.
        chosen = _sub_batch(batch, reference, jnp.sort(selection.ids), config.strata)
        metrics = {
            **selection.metrics,
            "picks": chosen.batch["id"],
            **_noise(batch, chosen.batch),
        }
        if not self.distils_apart:
            return chosen, chosen, metrics
        iid = _evenly_spaced(candidates, size)
        return chosen, _sub_batch(batch, reference, iid, config.strata), metrics

    def _scored(
        self,
        model: two_tower.TwoTowerConfig,
        how: ScoringConfig,
        params: PyTree,
        batch: dict[str, Array],
        prefix: str,
    ) -> Embeddings:
        """Embeddings of the super-batch, without gradient."""
        embed = functools.partial(scoring.embed, model, how)
        size = self.config.score_micro_batch
        params = jax.lax.stop_gradient(params)
        return _in_pieces(embed, params, _view(batch, prefix), "score_micro_batch", size).frozen()

    def _learner(self, params: PyTree, batch: dict[str, Array]) -> Embeddings:
        """Embeddings of a sub-batch, with gradient."""
        config, every = self.config, self.config.multi_resolution_every
        embed = functools.partial(scoring.embed, config.model, ScoringConfig())
        if every:
            embed = functools.partial(scoring.embed_mixed, config.model, config.scoring, every)
        return self._trained_on(embed, params["model"], _view(batch, ""))

    def _teachers(self, frozen: dict[str, PyTree], part: "_SubBatch") -> dict[str, Embeddings]:
        """The teachers' embeddings of B_KD."""
        teachers = {}
        for name in self.config.distillation.teachers:
            if name not in self._run_on_sub_batch:
                teachers[name] = part.reference
                continue
            embed = functools.partial(scoring.embed, self.frozen[name].model, ScoringConfig())
            view = _view(part.batch, _prefix(name))
            teachers[name] = self._trained_on(embed, frozen[name], view).frozen()
        return teachers

    def _trained_on(self, embed, params: PyTree, view: tuple[Array, Array]) -> Embeddings:
        return _in_pieces(embed, params, view, "train_micro_batch", self.config.train_micro_batch)


@dataclasses.dataclass(frozen=True)
class _SubBatch:
    """Some rows of the super-batch, with the reference's embeddings of them if it has scored."""

    batch: dict[str, Array]
    reference: Embeddings | None


def _view(batch: dict[str, Array], prefix: str) -> tuple[Array, Array]:
    """Images and texts as the model of this prefix sees them."""
    return tuple(batch.get(f"{prefix}{kind}", batch[kind]) for kind in ("image", "text"))


def _in_pieces(embed, params: PyTree, view: tuple[Array, Array], key: str, size: int) -> Embeddings:
    """`embed(params, *view)`, `size` examples at a time."""

    def rows(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        e = embed(params, *piece)
        return e.zimg, e.ztxt

    zimg, ztxt = map_micro_batches(rows, view, size, f"method.{key}")
    return Embeddings(zimg, ztxt, *two_tower.logit_parameters(params))


def _sub_batch(
    batch: dict[str, Array], reference: Embeddings | None, ids: Int[Array, " b"], strata: int
) -> _SubBatch:
    known = None if reference is None else (reference.zimg, reference.ztxt)
    rows, known = take((batch, known), ids, strata)
    if reference is not None:
        reference = reference.replace(zimg=known[0], ztxt=known[1])
    return _SubBatch(rows, reference)


def _evenly_spaced(candidates: int, size: int) -> Int[Array, " b"]:
    """Every B/b-th row: uniform, since the super-batch is shuffled, and none leaves its device."""
    return jnp.asarray(np.arange(size) * candidates // size, jnp.int32)


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
