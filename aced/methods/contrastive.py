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
models of their own size, tokenizer, resolution and temperature, and one may be the other. What
they say of an example never changes: their embeddings may come with the batch, from a cache.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from aced.config import ConfigError
from aced.cost import flops
from aced.data.pipeline import View
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.losses import contrastive, distillation
from aced.methods import scoring
from aced.methods.base import Method
from aced.methods.by_source import by_source
from aced.methods.contrastive_settings import REFERENCE, ContrastiveConfig, frozen_key
from aced.methods.scoring import ScoringConfig
from aced.models import two_tower
from aced.models.kinds import ModelConfig
from aced.optim import state
from aced.outputs import Embeddings
from aced.parallel.micro_batch import map_micro_batches
from aced.selection import collapse, scores, select, take


class Contrastive(Method):
    """The method: which models it holds, what it reads, and its train step."""

    def __init__(self, config: ContrastiveConfig):
        self.config = config
        self.distils = config.distillation.weight > 0
        self.distils_apart = self.distils and config.selects and config.distillation.batch == "iid"
        for name, item in config.frozen.items():
            where = frozen_key(name)
            if item.model is None:
                raise ConfigError(
                    f"The method needs the frozen model {name!r}; set {where}.checkpoint to the "
                    f"workdir of a finished run, or {where}.cache to its embeddings."
                )
            if name == REFERENCE:
                config.reference_scoring.check(item.model, "method.reference_scoring")
            if self._needs_bias(name):
                item.check_bias(where)
        # Those that are loaded and run, and those whose embeddings come with the batch.
        self.frozen = {name: item for name, item in config.frozen.items() if not item.cache}
        self.cached = {name: item for name, item in config.frozen.items() if item.cache}

    def _needs_bias(self, name: str) -> bool:
        """Whether a loss takes the logits of this frozen model one by one."""
        config = self.config
        scores_pairs = config.reference_scores and config.loss == "sigmoid"
        distils_pairs = self.distils and config.distillation.loss == "sigmoid"
        return (name == REFERENCE and scores_pairs) or (
            name in config.distillation.teachers and distils_pairs
        )

    # What the method asks of the loop.

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The models that run, by the prefix of what they see in a batch; the learner's is ""."""
        frozen = {_prefix(name): item.model for name, item in self.frozen.items()}
        return {"": self.config.model} | frozen

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """What a step reads: one stream, the super-batch."""
        views = {prefix: View.of(model) for prefix, model in self.models.items()}
        caches = {_prefix(name): item for name, item in self.cached.items()}
        return {"": Stream(data, candidates, views, caches)}

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step, scoring included; see `aced.cost.flops`."""
        config = self.config
        candidates = config.super_batch_size(batch_size)
        trained = batch_size * (2 if self.distils_apart else 1)
        pair = sum(flops.macs(config.model))
        every = config.multi_resolution_every
        seen = sum(scoring.macs(config.model, config.scoring))
        as_scored = trained // every if every else 0
        with_gradient = [(pair, trained - as_scored), (seen, as_scored)]
        with_gradient.append((self._macs_beside(), batch_size))
        forward = []
        if config.selects and scores.needs(config.selection.score, "learner"):
            forward.append((seen, candidates))
        if config.reference_scores and REFERENCE in self.frozen:
            model = self.frozen[REFERENCE].model
            forward.append((sum(scoring.macs(model, config.reference_scoring)), candidates))
        for name in self._run_on_sub_batch:
            forward.append((sum(flops.macs(self.frozen[name].model)), batch_size))
        return flops.step_flops(with_gradient, forward)

    def _macs_beside(self) -> int:
        """MACs that a pair of the sub-batch takes beside its embeddings."""
        return 0

    def init_params(self, key: jax.Array) -> PyTree:
        """Parameters before step 0: the learner's, and projections where features are matched."""
        model_key, projection_key = jax.random.split(key)
        params = super().init_params(model_key)
        if self.distils and self.config.distillation.loss == "feature":
            params["projections"] = {}
            for i, name in enumerate(self.config.distillation.teachers):
                params["projections"][name] = distillation.init_projection(
                    jax.random.fold_in(projection_key, i),
                    self.config.model.width,
                    self.config.frozen[name].model.width,
                )
        return params

    @property
    def _run_on_sub_batch(self) -> tuple[str, ...]:
        """Teachers to run on B_KD: neither cached ones nor a reference that has scored in full."""
        if not self.distils:
            return ()
        known = set(self.cached)
        if self.config.reference_scores and self.config.reference_scoring.exact:
            known.add(REFERENCE)
        return tuple(name for name in self.config.distillation.teachers if name not in known)

    # The step.

    def train_step(
        self,
        train_state: state.TrainState,
        frozen: dict[str, PyTree],
        batch: dict[str, Array],
        *,
        tx: optax.GradientTransformation,
        ema_decay: float = 0.0,
        sources: Sequence[str] = (),
    ) -> tuple[state.TrainState, dict[str, Array]]:
        """Returns the state after one step on the super-batch `batch`, and its metrics.

        `batch` holds arrays [B ...]: `image`, `text`, `id`, and views or embeddings of other models
        by prefix. The rest is as for any method.
        """
        chosen, iid, metrics = self._choose(train_state, frozen, batch, sources)

        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], dict[str, Array]]:
            learner, task, parts = self._task(params, chosen.batch)
            parts |= {"scale": learner.scale, "bias": learner.bias}
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

    def warning(self, measured: Mapping[str, Any]) -> str:
        """Whether the sub-batch has collapsed, and which setting to change."""
        return collapse(measured, self.config.selection) if self.config.selects else ""

    def _task(
        self, params: PyTree, batch: dict[str, Array]
    ) -> tuple[Embeddings, Float[Array, ""], dict[str, Array]]:
        """The learner's embeddings of a sub-batch, the loss without distillation, its parts."""
        learner = self._learner(params, batch)
        loss = contrastive.LOSSES[self.config.loss](learner, form=self.config.form)
        return learner, loss, {"loss/contrastive": loss}

    def _choose(
        self,
        train_state: state.TrainState,
        frozen: dict[str, PyTree],
        batch: dict[str, Array],
        sources: Sequence[str],
    ) -> tuple["_SubBatch", "_SubBatch", dict[str, Array]]:
        """B_CE and B_KD out of the super-batch; the same object where they are the same."""
        if not self.config.selects:
            whole = _SubBatch(batch, None)
            metrics = {**_noise(batch, batch), **by_source(sources, batch, batch)}
            return whole, whole, {"picks": batch["id"], **metrics}
        config = self.config.selection
        candidates = batch["id"].shape[0]
        size = config.sub_batch_size(candidates)
        learner = reference = known = None
        if scores.needs(config.score, "learner"):
            model, how = self.config.model, self.config.scoring
            learner = self._scored(model, how, train_state.params["model"], batch, "")
        if self.config.reference_scores and REFERENCE in self.cached:
            reference = self._from_cache(REFERENCE, batch)
        elif self.config.reference_scores:
            item, how = self.frozen[REFERENCE], self.config.reference_scoring
            seen = self._scored(item.model, how, frozen[REFERENCE], batch, _prefix(REFERENCE))
            reference = known = item.with_own_logits(seen)
        key = jax.random.fold_in(train_state.key, train_state.step)
        selection = select(key, learner, reference, config, loss=self.config.loss, size=size)
        # In the order of the super-batch, which is the same whichever device holds which part.
        chosen = _sub_batch(batch, known, jnp.sort(selection.ids), config.strata)
        terms = None
        if self.config.loss == "sigmoid":  # the softmax loss of a pair has no part of its own
            terms = scores.score_terms(config.score, learner, reference, config.reference_weight)
        metrics = {
            **selection.metrics,
            "picks": chosen.batch["id"],
            **_noise(batch, chosen.batch),
            **by_source(sources, batch, chosen.batch, terms),
        }
        if not self.distils_apart:
            return chosen, chosen, metrics
        iid = _evenly_spaced(candidates, size)
        return chosen, _sub_batch(batch, known, iid, config.strata), metrics

    def _scored(
        self,
        model: ModelConfig,
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
            if name in self.cached:
                teachers[name] = self._from_cache(name, part.batch)
            elif name not in self._run_on_sub_batch:
                teachers[name] = part.reference
            else:
                item = self.frozen[name]
                embed = functools.partial(scoring.embed, item.model, ScoringConfig())
                view = _view(part.batch, _prefix(name))
                seen = self._trained_on(embed, frozen[name], view).frozen()
                teachers[name] = item.with_own_logits(seen)
        return teachers

    def _from_cache(self, name: str, batch: dict[str, Array]) -> Embeddings:
        """A frozen model's embeddings, as they came with these rows."""
        item, prefix = self.cached[name], _prefix(name)
        zimg, ztxt = batch[f"{prefix}zimg"], batch[f"{prefix}ztxt"]
        bias = 0.0 if item.bias is None else item.bias
        return Embeddings(zimg, ztxt, jnp.float32(item.scale), jnp.float32(bias))

    def _trained_on(self, embed, params: PyTree, view: tuple[Array, Array]) -> Embeddings:
        return _in_pieces(embed, params, view, "train_micro_batch", self.config.train_micro_batch)


@dataclasses.dataclass(frozen=True)
class _SubBatch:
    """Some rows of the super-batch, with the reference's embeddings of them if it has run."""

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
