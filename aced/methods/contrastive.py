"""IID, KD, ACID and ACED: one train step, distinguished by configuration (arXiv 2411.18674).

    L = contrastive_weight * L_contrastive[B_CE] + weight * L_KD[B_KD]

| method            | weight | B_CE: selection.score             | B_KD                  |
| ----------------- | ------ | --------------------------------- | --------------------- |
| IID               | 0      | all, selection.filter_ratio = 0   | -                     |
| hard learner      | 0      | hard_learner                      | -                     |
| I-ACID            | 0      | easy_reference                    | -                     |
| H-ACID            | 0      | learnability                      | -                     |
| CABS-DM           | 0      | concept_balance                   | -                     |
| CABS-FM           | 0      | concept_count                     | -                     |
| softmax-KD, ...   | > 0    | all, selection.filter_ratio = 0   | the same              |
| ACED-IIDistill    | > 0    | learnability                      | IID, batch = "iid"    |
| ACED-ACIDistill   | > 0    | learnability                      | the same              |

`contrastive_weight` is 1, or 0 for distillation only, alone or on the batches of a selection.

The reference scores the super-batch; the teachers are distilled from. All are frozen two-tower
models with their own size, tokenizer, resolution and temperature, and the reference may also be a
teacher. Their embeddings of an example never change, so they may be read from a cache.

With `score_ahead` = K, step t trains on what was picked from super-batch t, and scores super-batch
t + K with the same parameters, from pictures as small as scoring needs. The state keeps the picks
of the K super-batches in between.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from aced.config import ConfigError
from aced.cost import flops
from aced.data.batch_spec import View, with_embeddings
from aced.data.concepts import concept_list
from aced.data.picks import AHEAD, CANDIDATES
from aced.data.sources import DataConfig
from aced.data.streams import Stream
from aced.losses import LOSSES, distillation
from aced.losses.reference_shift import shifted
from aced.methods.base import Batch, Loss, Method, Metrics, StepContext, Stepped
from aced.methods.contrastive_settings import LEARNER, REFERENCE, ContrastiveConfig, frozen_key
from aced.methods.providers import Provider, Running, Stored
from aced.models.base import ModelConfig
from aced.optim.state import TrainState
from aced.outputs import Embeddings
from aced.selection import Concepts, collapse, few_concepts, scores, select, take
from aced.selection.gather import evenly_spaced, gather_rows


class _Scored(NamedTuple):
    """A super-batch of B candidates, scored, with what is picked from it."""

    batch: Batch  # with the reference's embeddings, if it has scored
    rows: Int[Array, " b"]  # of the picks, ascending: the order does not depend on the devices
    metrics: Metrics  # of the selection
    terms: scores.Terms | None  # of the score of each pair; None: the loss of one pair is 0


class Contrastive(Method):
    """The method `contrastive`."""

    def __init__(self, config: ContrastiveConfig):
        self.config, self.ahead = config, config.score_ahead
        self.distils = config.distillation.weight > 0
        # Of the list that the scores read; here, so that a missing list is found before any run.
        by_concept = config.selects and config.selection.by_concept
        self.concepts = len(concept_list(config.selection.concepts)) if by_concept else 0
        self.distils_apart = self.distils and config.selects and config.distillation.batch == "iid"
        for name, item in config.frozen.items():
            key = frozen_key(name)
            if item.model is None and not item.cache:
                raise ConfigError(
                    f"The method needs the frozen model {name!r}; set {key}.checkpoint to the "
                    f"workdir of a finished run, or {key}.cache to its embeddings."
                )
            if name == REFERENCE and not item.cache:
                config.reference_scoring.check(item.model, "method.reference_scoring")
            if self._needs_bias(name):
                item.check_bias(key)
        self.frozen = {name: item for name, item in config.frozen.items() if not item.cache}
        score, train = (
            functools.partial(Running, micro_batch=getattr(config, name), setting=f"method.{name}")
            for name in ("score_micro_batch", "train_micro_batch")
        )
        # Providers of embeddings: sub-batch with gradient, super-batch to score, B_KD by teachers.
        every = config.multi_resolution_every
        mixed = {"scoring": config.scoring.view, "every": every} if every else {}
        self.learner = train(config.model, "", **mixed)
        self.scorers: dict[str, Provider] = {}
        if config.selects and scores.needs(config.selection.score, LEARNER):
            self.scorers[LEARNER] = score(config.model, "", scoring=config.scoring)
        if config.reference_scores:
            score = functools.partial(score, scoring=config.reference_scoring)
            self.scorers[REFERENCE] = self._frozen_provider(REFERENCE, score)
        # Whether the reference's embeddings of the sub-batch are known from scoring.
        known = config.reference_scores and config.reference_scoring.exact and not self.ahead
        self.shift: Provider | None = None  # of the reference on the sub-batch
        if config.reference_shift:
            self.shift = self._frozen_provider(REFERENCE, train, stored=known)
            known = known or not self.distils_apart  # where it teaches
        self.teachers = {
            name: self._frozen_provider(
                name, train, stored=known and name == REFERENCE, teaches=True
            )
            for name in (config.distillation.teachers if self.distils else ())
        }
        # Those of frozen models that read what is trained on.
        shift = [] if self.shift is None else [self.shift]
        self.frozen_providers: list[Provider] = [*self.teachers.values(), *shift]

    def _frozen_provider(
        self,
        name: str,
        running: Callable[..., Running],
        *,
        stored: bool = False,
        teaches: bool = False,
    ) -> Provider:
        item, prefix = self.config.frozen[name], prefix_of(name)
        if teaches and name == REFERENCE and self.config.distillation.reference_scale is not None:
            item = dataclasses.replace(item, scale=self.config.distillation.reference_scale)
        if item.cache or stored:
            return Stored(prefix, item.logits)
        return running(item.model, prefix, logits=item.logits)

    def _needs_bias(self, name: str) -> bool:
        """Whether a sigmoid loss reads the logits of this frozen model."""
        config = self.config
        scored = config.selects and scores.needs(config.selection.score, REFERENCE)
        if name == REFERENCE and scored and config.loss == "sigmoid":
            return True
        distillation = config.distillation
        return self.distils and name in distillation.teachers and distillation.loss == "sigmoid"

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The models that run, by the prefix of their inputs in a batch; the learner's is ""."""
        frozen = {prefix_of(name): item.model for name, item in self.frozen.items()}
        return {"": self.config.model} | frozen

    def streams(self, data: DataConfig, candidates: int) -> dict[str, Stream]:
        """The super-batch or, with `score_ahead`, its picks and the candidates of a later one."""
        concepts = self.config.selection.concepts
        if self.ahead:
            size = self.config.selection.sub_batch_size(candidates)
            trained = [self.learner, *self.frozen_providers]
            return {
                "": self._stream(data, size, trained, picked_from=candidates),
                CANDIDATES: self._stream(
                    data,
                    candidates,
                    self.scorers.values(),
                    ahead=self.ahead,
                    concepts=concepts,
                ),
            }
        views = {prefix: View.of(model) for prefix, model in self.models.items()}
        cached = self.config.frozen.keys() - self.frozen.keys()
        caches = {prefix_of(name): self.config.frozen[name] for name in sorted(cached)}
        return {"": Stream(data, candidates, views, caches, concepts=concepts)}

    def _stream(
        self, data: DataConfig, rows: int, providers: Iterable[Provider], **settings: Any
    ) -> Stream:
        """What `providers` read."""
        frozen = {prefix_of(name): item for name, item in self.config.frozen.items()}
        views = {item.prefix: item.view for item in providers if isinstance(item, Running)}
        if views and "" not in views:  # the only one takes the place of the learner's
            views = {"": views.popitem()[1]}
        stored = [item.prefix for item in providers if isinstance(item, Stored)]
        caches = {prefix: frozen[prefix] for prefix in stored if frozen[prefix].cache}
        return Stream(data, rows, views, caches, **settings)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step, scoring included; see `aced.cost.flops`."""
        trained = batch_size * (2 if self.distils_apart else 1)
        with_gradient = self.learner.macs(trained) + self._macs_beside() * batch_size
        forward = self._macs_of_scoring(batch_size)
        forward += sum(provider.macs(batch_size) for provider in self.frozen_providers)
        return flops.step_flops([(with_gradient, 1)], [(forward, 1)])

    def flops_before(self, batch_size: int) -> int:
        """Floating point operations before the first step, by `score_first`."""
        return self.ahead * flops.step_flops([], [(self._macs_of_scoring(batch_size), 1)])

    def _macs_of_scoring(self, batch_size: int) -> int:
        candidates = self.config.super_batch_size(batch_size)
        return sum(scorer.macs(candidates) for scorer in self.scorers.values())

    def _macs_beside(self) -> int:
        """MACs per pair of the sub-batch, beyond its embeddings."""
        return 0

    def init_params(self, key: jax.Array) -> PyTree:
        """Random parameters: the learner's and, for feature matching, projections."""
        model_key, projection_key = jax.random.split(key)
        params = super().init_params(model_key)
        if self.distils and self.config.distillation.loss == "feature":
            params["projections"] = {}
            for i, name in enumerate(self.config.distillation.teachers):
                params["projections"][name] = distillation.init_projection(
                    jax.random.fold_in(projection_key, i),
                    self.config.model.width,
                    self.config.frozen[name].width,
                )
        return params

    def init_memory(self, params: PyTree, batch_size: int) -> Int[Array, "k 2 b"] | None:
        """Room for the picks of the super-batches that are scored ahead."""
        del params
        return jnp.zeros((self.ahead, 2, batch_size), jnp.int32) if self.ahead else None

    def score_first(
        self, train_state: TrainState, frozen: PyTree, candidates: Batch, number: Int[Array, ""]
    ) -> TrainState:
        """The initial state with the picks of super-batch `number` of the first `ahead`."""
        scored = self._score(train_state, frozen, candidates, number)
        return train_state.replace(method=_shifted(train_state.method, _picks(scored)))

    def train_step(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> Stepped:
        """Returns the state after one step, and its metrics.

        `batch` holds arrays [B ...] of the super-batch: `image`, `text`, `id`, and views or
        embeddings for other models, by prefix. With `score_ahead` these are [b ...] of its picks,
        and under `CANDIDATES` there are arrays [B ...] of a later super-batch. The other arguments
        are those of `Method.train_step`.
        """
        chosen, apart, metrics = self._choose(train_state, frozen, batch, context)
        memory = train_state.method
        if self.ahead:
            memory = _shifted(memory, metrics[AHEAD])
        shift = None
        if self.shift is not None:
            shift = _embed(self.shift, frozen.get(REFERENCE), chosen)
            chosen = with_embeddings(chosen, prefix_of(REFERENCE), shift)  # it may also teach

        def loss_fn(params: PyTree) -> Loss:
            learner, task, parts = self._task(params, chosen, shift)
            parts |= {"scale": learner.scale, "bias": learner.bias}
            if not self.distils:
                return task, parts
            student, taught = learner, chosen
            if apart is not None:
                student, taught = self.learner.embed(params["model"], apart), apart
            teachers = {
                name: _embed(teacher, frozen.get(name), taught)
                for name, teacher in self.teachers.items()
            }
            distilled = distillation.distillation_loss(
                self.config.distillation.loss,
                student,
                teachers,
                params.get("projections"),
                form=self.config.form,
                average=self.config.distillation.average,
            )
            parts["loss/distillation"] = distilled
            return task + self.config.distillation.weight * distilled, parts

        new_state, metrics = context.update(train_state, loss_fn, metrics)
        return new_state.replace(method=memory), metrics

    def warning(self, measured: Mapping[str, ArrayLike]) -> str:
        """A warning if the picks are all alike, or drawn at random, with the setting to change."""
        if not self.config.selects:
            return ""
        settings = self.config.selection
        return collapse(measured, settings) or few_concepts(measured, settings)

    def _task(
        self, params: PyTree, batch: Batch, shift: Embeddings | None
    ) -> tuple[Embeddings, Float[Array, ""], Metrics]:
        """The learner's embeddings of a sub-batch, the loss without distillation, and metrics.

        `shift` are the reference's embeddings, if the loss is shifted by them.
        """
        learner = self.learner.embed(params["model"], batch)
        if not self.config.contrastive_weight:
            return learner, jnp.float32(0), {}
        loss = self._contrastive_loss(learner, shift)
        return learner, self.config.contrastive_weight * loss, {"loss/contrastive": loss}

    def _contrastive_loss(self, learner: Embeddings, shift: Embeddings | None) -> Float[Array, ""]:
        model = learner if shift is None else shifted(learner, shift)
        return LOSSES[self.config.loss](model, form=self.config.form)

    def _choose(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, context: StepContext
    ) -> tuple[Batch, Batch | None, Metrics]:
        """Returns B_CE, B_KD unless it is the same, and metrics of the choice.

        With `score_ahead` the numbers of candidates and scores are those of the super-batch that
        this step scores, and the numbers of the picks those of the batch that it trains on.
        """
        if not self.config.selects:
            return batch, None, {**_noise(batch, batch), **context.picks(batch, batch)}
        if self.ahead:
            chosen, candidates = _split(batch)
            scored = self._score(train_state, frozen, candidates, train_state.step + self.ahead)
            return chosen, None, {AHEAD: _picks(scored)} | _numbers(scored, chosen, context)
        strata = self.config.selection.strata
        scored = self._score(train_state, frozen, batch, train_state.step)
        with jax.named_scope("select"):
            chosen = take(scored.batch, scored.rows, strata)
        metrics = _numbers(scored, chosen, context)
        if not self.distils_apart:
            return chosen, None, metrics
        # It stays on its device.
        spaced = jnp.asarray(evenly_spaced(batch["id"].shape[0], len(scored.rows)))
        return chosen, take(scored.batch, spaced, strata), metrics

    def _score(
        self, train_state: TrainState, frozen: PyTree, batch: Batch, number: Int[Array, ""]
    ) -> _Scored:
        """Scores the super-batch `batch`, which is super-batch `number` of the run."""
        config = self.config.selection
        size = config.sub_batch_size(batch["id"].shape[0])
        params = frozen | {LEARNER: train_state.params["model"]}
        embedded = {}
        for name, scorer in self.scorers.items():
            with jax.named_scope(f"score_{name}"):
                embedded[name] = _embed(scorer, params.get(name), batch)
        learner, reference = embedded.get(LEARNER), embedded.get(REFERENCE)
        if reference is not None:
            batch = with_embeddings(batch, prefix_of(REFERENCE), reference)
        key = jax.random.fold_in(train_state.key, number)
        with jax.named_scope("select"):
            concepts = Concepts(batch["concepts"], self.concepts) if self.concepts else None
            selection = select(
                key, learner, reference, config, loss=self.config.loss, size=size, concepts=concepts
            )
            rows = jnp.sort(selection.ids)
        terms = None
        # The softmax loss of one pair is 0.
        if self.config.loss == "sigmoid" and not config.by_concept:
            terms = scores.score_terms(config.score, learner, reference, config.reference_weight)
        return _Scored(batch, rows, selection.metrics, terms)


def prefix_of(name: str) -> str:
    """The prefix of a frozen model's arrays in a batch."""
    return "reference/" if name == REFERENCE else f"teacher/{name}/"


def _embed(provider: Provider, params: PyTree | None, batch: Batch) -> Embeddings:
    """Embeddings with gradients stopped."""
    return provider.embed(jax.lax.stop_gradient(params), batch).frozen()


def _split(batch: Batch) -> tuple[Batch, Batch]:
    """The arrays of the picks, and those of the candidates without their prefix."""
    candidates = {
        name.removeprefix(CANDIDATES): x for name, x in batch.items() if name.startswith(CANDIDATES)
    }
    return {k: x for k, x in batch.items() if not k.startswith(CANDIDATES)}, candidates


def _picks(scored: _Scored) -> Int[Array, "2 b"]:
    """Rows and ids."""
    return jnp.stack([scored.rows, gather_rows(scored.batch["id"], scored.rows)])


def _shifted(memory: Int[Array, "k 2 b"], latest: Int[Array, "2 b"]) -> Int[Array, "k 2 b"]:
    """The picks of K super-batches, without those of the first and with those of the next one."""
    return jnp.concatenate([memory[1:], latest[None]])


def _numbers(scored: _Scored, chosen: Batch, context: StepContext) -> Metrics:
    return {
        **scored.metrics,
        **_noise(scored.batch, chosen),
        **context.picks(scored.batch, chosen, scored.terms),
    }


def _noise(batch: Batch, chosen: Batch) -> Metrics:
    """Shares of noisy pairs, if the source labels them."""
    if "is_noisy" not in batch:
        return {}
    return {
        "selection/noisy_share": chosen["is_noisy"].mean(dtype=jnp.float32),
        "selection/noisy_share_super_batch": batch["is_noisy"].mean(dtype=jnp.float32),
    }
