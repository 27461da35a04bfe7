"""The settings of the method `contrastive`."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Interval

from aced.bounds import NonNegativeFloat, NonNegativeInt, OneOf, PositiveFloat
from aced.config import Checked, ConfigError, MayChange
from aced.losses import LOSSES
from aced.losses.distillation import FEATURE, PAIRWISE, Average
from aced.methods.base import MethodConfig
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig
from aced.models import two_tower
from aced.selection import SelectionConfig, scores

LEARNER, REFERENCE = "learner", "reference"  # the models whose losses make a score
_TITLES = {  # names in arXiv 2411.18674, by score
    "learnability": "H-ACID",
    "easy_reference": "I-ACID",
    "hard_learner": "hard learner",
    "concept_balance": "CABS-DM",  # arXiv 2511.20643
    "concept_count": "CABS-FM",
}


def frozen_key(name: str) -> str:
    """The path in the config of the settings of the frozen model `name`."""
    return "method.reference" if name == REFERENCE else f"method.teachers.{name}"


def _unread_scale(key: str) -> ConfigError:
    return ConfigError(
        f"{key} is not read with method.distillation.loss = 'feature', which has no logits; leave "
        "it at None."
    )


@dataclasses.dataclass(frozen=True)
class DistillationConfig(Checked):
    """The second term of the loss. Its defaults are our choice."""

    weight: NonNegativeFloat = 0.0  # lambda; 0 leaves the term out
    loss: Annotated[str, OneOf(PAIRWISE, (FEATURE,))] = "softmax"
    batch: Literal["selected", "iid"] = "selected"  # B_KD: ACIDistill or IIDistill
    # Names in method.teachers, or "reference": ACED has two models, one reference for selection and
    # one teacher.
    teachers: tuple[str, ...] = (REFERENCE,)
    # What is averaged over several teachers: their "probabilities", after the softmax or sigmoid,
    # which for these losses is the average of the losses; or their "logits", before it
    average: Average = "probabilities"
    # Scale of the reference's logits where it teaches; None: as where it scores. The scale of
    # another teacher is method.teachers.NAME.scale (MobileCLIP2: tuned, 60 to 70)
    reference_scale: PositiveFloat | None = None


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(MethodConfig):
    """Settings of the method `contrastive`."""

    name: str = "contrastive"
    model: two_tower.TwoTowerConfig = two_tower.TwoTowerConfig()
    loss: Annotated[str, OneOf(LOSSES)] = "sigmoid"
    contrastive_weight: NonNegativeFloat = 1.0  # of that loss; 0: distillation only
    # Whether that loss is of the learner's similarities minus the reference's, as in DRRho-CLIP
    # (arXiv 2505.06699); see losses/reference_shift.py. Softmax only
    reference_shift: bool = False
    reference: FrozenConfig = FrozenConfig()  # scores candidates; unused if the score needs none
    # Models to distil from, by name; those that distillation.teachers leaves out are not loaded.
    teachers: dict[str, FrozenConfig] = dataclasses.field(default_factory=dict)
    selection: SelectionConfig = SelectionConfig(filter_ratio=0.0)
    distillation: DistillationConfig = DistillationConfig()
    # How losses over all pairs are computed: "ring" passes embeddings from device to device and
    # keeps no logits; "full" holds each device's rows of the b x b logits. The results are equal.
    form: MayChange[Literal["ring", "full"]] = "ring"
    # Candidates that are scored at a time over all devices; 0: all at once. Does not change the
    # results.
    score_micro_batch: MayChange[NonNegativeInt] = 0
    scoring: ScoringConfig = ScoringConfig()  # how the learner runs for scoring
    reference_scoring: ScoringConfig = ScoringConfig()  # how the reference runs for scoring
    # n: one in n trained examples is computed as in `scoring`, the others in full; 0: none. A
    # learner that scores with larger patches or shorter texts has to be trained with these. JEST's
    # Flexi trains half of the batch in this way (2), and needs a quarter (4).
    multi_resolution_every: Annotated[int, Interval(ge=0, le=1024)] = 0
    # K: a step trains on the picks of its super-batch, which was scored K steps before, and scores
    # the super-batch of K steps later. So only the picks are decoded in full. With 1 they are
    # decoded between two steps, with 2 during a step. 0: each step scores what it trains on
    score_ahead: Annotated[int, Interval(ge=0, le=2)] = 0

    def _check(self) -> None:
        super()._check()
        if self.multi_resolution_every == 1:
            raise ConfigError(
                "method.multi_resolution_every = 1 leaves no example computed in full; set it to "
                "0 (none) or n = 2 to 1024 (one example in n)."
            )
        if self.multi_resolution_every and self.scoring.view.exact:
            raise ConfigError(
                "method.multi_resolution_every trains with method.scoring.patch and .text_length, "
                "and neither is set; set one of them, or set multi_resolution_every to 0."
            )
        self.scoring.check(self.model)
        if self.selects:
            self.selection.check_loss(self.loss)
        self._check_score_ahead()
        self._check_scoring()
        names = set(self.teachers) | {REFERENCE}
        if REFERENCE in self.teachers:
            raise ConfigError(
                "A teacher must not be called 'reference'. To distil from method.reference, list "
                "'reference' in method.distillation.teachers."
            )
        distillation = self.distillation
        if distillation.weight > 0 and not distillation.teachers:
            raise ConfigError("method.distillation.weight > 0 needs method.distillation.teachers.")
        if distillation.average == "logits" and distillation.loss == FEATURE:
            raise ConfigError(
                "method.distillation.loss = 'feature' has no logits that could be averaged; leave "
                "method.distillation.average at 'probabilities'."
            )
        self._check_scales()
        self._check_weights()
        self._check_concepts()
        for name in self.distillation.teachers:
            if name not in names:
                raise ConfigError(
                    f"method.distillation.teachers names {name!r}; known: {sorted(names)}."
                )

        if self.reference_shift and (self.loss != "softmax" or not self.contrastive_weight):
            raise ConfigError(
                "method.reference_shift changes the softmax loss; set method.loss = 'softmax' and "
                "a method.contrastive_weight above 0, or method.reference_shift = False."
            )

    def _check_score_ahead(self) -> None:
        """Raises a ConfigError if candidates cannot be read apart from what is trained on."""
        for name in ("scoring", "reference_scoring"):
            if not self.score_ahead and getattr(self, name).resolution is not None:
                raise ConfigError(
                    f"method.{name}.resolution needs method.score_ahead: otherwise every candidate "
                    "is read in full anyway. Set method.score_ahead to 1 or 2, or the resolution "
                    "to None."
                )
        if not self.score_ahead:
            return
        if not self.selects:
            raise ConfigError(
                f"method.score_ahead = {self.score_ahead} needs selection; set "
                "method.selection.filter_ratio above 0, or score_ahead to 0."
            )
        if self.distillation.weight > 0 and self.distillation.batch == "iid":
            raise ConfigError(
                "method.distillation.batch = 'iid' distils on candidates that were not picked, "
                "which method.score_ahead does not decode in full; set batch to 'selected', or "
                "score_ahead to 0."
            )

    def _check_scoring(self) -> None:
        """Raises a ConfigError if it is set how a model scores that does not."""
        if self.reference.cache and not self.reference_scoring.exact:
            raise ConfigError(
                "method.reference_scoring is for a reference that runs, but its embeddings are "
                "read from method.reference.cache; leave it at its defaults."
            )
        learner_scores = self.selects and scores.needs(self.selection.score, LEARNER)
        for name, is_read in (
            ("scoring", learner_scores or self.multi_resolution_every > 0),
            ("reference_scoring", self.reference_scores),
        ):
            if not is_read and not getattr(self, name).exact:
                raise ConfigError(
                    f"method.{name} is not read with method.selection.score = "
                    f"{self.selection.score!r} and method.selection.filter_ratio = "
                    f"{self.selection.filter_ratio:g}; leave it at its defaults."
                )

    def _check_scales(self) -> None:
        """Raises a ConfigError if the scale of a teacher's logits is set and not read."""
        distillation = self.distillation
        if distillation.reference_scale is not None and REFERENCE not in distillation.teachers:
            raise ConfigError(
                "method.distillation.reference_scale is for a reference that teaches, but "
                f"method.distillation.teachers = {distillation.teachers} does not list it; set "
                "method.teachers.NAME.scale for these teachers."
            )
        if distillation.reference_scale is not None and not distillation.weight:
            raise ConfigError(
                "method.distillation.reference_scale is not read where method.distillation.weight "
                "is 0; leave it at None, or set the weight."
            )
        if distillation.loss != FEATURE:
            return
        if distillation.reference_scale is not None:
            raise _unread_scale("method.distillation.reference_scale")
        for name, item in self.teachers.items():
            # `resolve` fills in the scale of a cache, and compares one that was set with it.
            if item.scale is not None and not item.cache:
                raise _unread_scale(f"{frozen_key(name)}.scale")

    def _check_concepts(self) -> None:
        """Raises a ConfigError unless there is a list of concepts exactly where one is read."""
        selection, reads = self.selection, self.selects and self.selection.by_concept
        if reads and not selection.concepts:
            raise ConfigError(
                f"method.selection.score = {selection.score!r} needs the concepts of captions; set "
                "method.selection.concepts to a text file with one concept in each line."
            )
        if selection.concepts and not reads:
            raise ConfigError(
                f"method.selection.concepts = {selection.concepts!r} is not read with "
                f"method.selection.score = {selection.score!r} and "
                f"method.selection.filter_ratio = {selection.filter_ratio:g}; leave it empty."
            )

    def _check_weights(self) -> None:
        """Raises a ConfigError if nothing trains the learner, or what is selected is not used."""
        if self.contrastive_weight:
            return
        if not self.distillation.weight:
            raise ConfigError(
                "One of method.contrastive_weight and method.distillation.weight must be above 0."
            )
        if self.selects and self.distillation.batch == "iid":
            raise ConfigError(
                "With method.contrastive_weight = 0 and method.distillation.batch = 'iid' nothing "
                "is trained on the selected batch; set batch to 'selected', or "
                "method.selection.filter_ratio to 0."
            )

    @property
    def title(self) -> str:
        """The name in arXiv 2411.18674, with that of the shifted loss in 2505.06699."""
        if not self.reference_shift:
            return self._title
        return "DRRho" if self._title == "IID" else f"{self._title} + DRRho"

    @property
    def _title(self) -> str:
        distils = self.distillation.weight > 0
        kd = f"{self.distillation.loss}-KD" + (" only" if self.only_distils else "")
        if not self.selects:
            return kd if distils else "IID"
        if distils and self.selection.score == "learnability" and not self.only_distils:
            return "ACED-IIDistill" if self.distillation.batch == "iid" else "ACED-ACIDistill"
        name = _TITLES[self.selection.score]
        return f"{name} + {kd}" if distils else name

    @property
    def only_distils(self) -> bool:
        """Whether distillation is the only loss."""
        return not self.contrastive_weight

    @property
    def selects(self) -> bool:
        """Whether the method selects a sub-batch, or else trains on the whole super-batch."""
        return self.selection.filter_ratio > 0

    @property
    def reference_scores(self) -> bool:
        """Whether the reference embeds the super-batch, for its losses or for false negatives."""
        damps = self.selection.false_negative_margin is not None
        return self.selects and (damps or scores.needs(self.selection.score, REFERENCE))

    @property
    def frozen(self) -> dict[str, FrozenConfig]:
        """The frozen models in use, by name."""
        needed = set(self.distillation.teachers) if self.distillation.weight > 0 else set()
        needed |= {REFERENCE} if self.reference_scores or self.reference_shift else set()
        return {name: self.named[name] for name in sorted(needed)}

    @property
    def named(self) -> dict[str, FrozenConfig]:
        """All configured frozen models, in use or not, by name."""
        return {REFERENCE: self.reference, **self.teachers}

    def key_of(self, name: str) -> str:
        """The path in the config of a frozen model's settings."""
        return frozen_key(name)

    def super_batch_size(self, batch_size: int) -> int:
        """B, the candidates read per step, given b, the examples trained on.

        Raises:
            ConfigError: the sizes do not fit together.
        """
        return self.selection.super_batch_size(batch_size) if self.selects else batch_size

    def for_batch(self, batch_size: int) -> "ContrastiveConfig":
        """Returns the settings with the number of strata, which depends on b, filled in."""
        if not self.selects:
            return self
        return dataclasses.replace(self, selection=self.selection.for_batch(batch_size))

    def resolve(self, workdir: str) -> "ContrastiveConfig":
        """See `MethodConfig`; also raises a ConfigError for the scale of a cached teacher.

        The feature loss does not read it, so it must be None or the cache's own.
        """
        for name, item in self.frozen.items():
            if self.distillation.loss != FEATURE or name == REFERENCE or item.scale is None:
                continue
            own = dataclasses.replace(item, scale=None).resolve(workdir, self.towers_of(name))
            if item.scale != own.scale:
                raise _unread_scale(f"{frozen_key(name)}.scale")
        return super().resolve(workdir)

    def with_frozen(self, frozen: dict[str, FrozenConfig]) -> "ContrastiveConfig":
        """Returns the settings with the given frozen models, by name."""
        return dataclasses.replace(
            self,
            reference=frozen.get(REFERENCE, self.reference),
            teachers={name: frozen.get(name, item) for name, item in self.teachers.items()},
        )
