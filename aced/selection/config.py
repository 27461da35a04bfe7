"""The settings of selection."""

import dataclasses
import math
from typing import Annotated, Literal

from annotated_types import Interval

from aced.bounds import PositiveFloat, PositiveInt, ProperFraction
from aced.config import Checked, ConfigError, MayChange

# Limits for `strata=None`: enough strata for 256 chips, and enough picks per stratum that a fixed
# share costs little.
_MOST_STRATA, _LEAST_SHARE = 256, 128


@dataclasses.dataclass(frozen=True)
class SelectionConfig(Checked):
    """How b of B candidates are chosen. Defaults are JEST's (arXiv 2406.17711) unless noted."""

    # What is maximised: "learnability" = loss(learner) - loss(reference), H-ACID;
    # "easy_reference" = -loss(reference), I-ACID; "hard_learner" = loss(learner), ablation only.
    # Without a model, from the concepts of the captions: "concept_balance", joint, and
    # "concept_count", independent, see concepts.py.
    score: Literal[
        "learnability", "hard_learner", "easy_reference", "concept_balance", "concept_count"
    ] = "learnability"
    # The list that these scores find concepts in: a text file with one concept in each line. The
    # file may move; its concepts have a digest in the record of the run.
    concepts: MayChange[str] = ""
    # "joint": examples are scored given those chosen before, chunk by chunk; "independent": each
    # example is scored by itself.
    method: Literal["joint", "independent"] = "joint"
    # Independent only: "sample" in proportion to exp(gain * score), or take the "top_k", of equal
    # scores by lot.
    draw: Literal["sample", "top_k"] = "sample"
    # Share of the super-batch that is DISCARDED: b = B (1 - filter_ratio).
    filter_ratio: ProperFraction = 0.8
    # N, the number of chunks in which joint selection draws the sub-batch.
    chunks: PositiveInt = 16
    # w in loss(learner) - w * loss(reference), for the score "learnability". The paper has 1;
    # "easy_reference" is the limit of a large w. Other values are ours: see docs/selection.md.
    reference_weight: PositiveFloat = 1.0
    # Factor on the scores before sampling, an inverse temperature. JEST states 100. The value of
    # ACID is not known to us; a "temperature 10" could not be verified.
    gain: PositiveFloat = 100.0
    # The same for the softmax loss, whose scores are averages; None: as `gain`.
    softmax_gain: PositiveFloat | None = None
    # Unit of the gain in each draw; see gain.py. "none": nats, as in the paper; "terms": nats of
    # the mean pairwise loss, as in SCID; "std": standard deviations of the candidates' scores;
    # "perplexity": the gain is chosen such that the effective number of candidates (perplexity) is
    # the share `perplexity_share` of the remaining ones. All but "none" are ours.
    normalization: Literal["none", "terms", "std", "perplexity"] = "none"
    perplexity_share: Annotated[float, Interval(gt=0, lt=1)] = 0.3
    # Joint only: pairs whose cosine by the reference is at least that of the candidate's own match
    # minus this margin do not count, see false_negatives.py. Above 0: the cosines of equal captions
    # differ by rounding, which would decide with 0. None: all pairs count. Ours.
    false_negative_margin: PositiveFloat | None = None
    # How the first chunk is drawn: by each candidate's own "score", or "uniform". With the joint
    # softmax loss, where a single pair has no loss, "score" uses the whole super-batch as
    # negatives, which costs O(B^2 d). The paper does not specify this.
    first_chunk: Literal["score", "uniform"] = "score"
    # Number of contiguous equal parts of the super-batch, each of which gives the same share of the
    # sub-batch; when a part has given its share, no more is drawn from it. 1 is the paper's
    # algorithm. If it is a multiple of the number of devices that share the examples, no pixel
    # moves; otherwise the chosen examples are exchanged. The picks depend on this number and not on
    # the devices. None: set by the sizes, see `for_batch`.
    strata: PositiveInt | None = None
    # Candidates of each stratum that are compared with a chunk at once; more take more memory.
    tile: PositiveInt = 2048
    # Of the matrix products; "highest" is float32. The gain amplifies rounding errors.
    precision: Literal["default", "high", "highest"] = "highest"

    def _check(self) -> None:
        if self.method == "joint" and self.draw != "sample":
            raise ConfigError(
                f"selection.draw={self.draw!r} is for selection.method='independent'; joint "
                f"selection always samples. Change one of the two."
            )
        needed = {"concept_balance": "joint", "concept_count": "independent"}
        if (method := needed.get(self.score, self.method)) != self.method:
            raise ConfigError(
                f"selection.score={self.score!r} is for selection.method={method!r}, got "
                f"{self.method!r}. Change one of the two."
            )
        if self.by_concept and self.false_negative_margin is not None:
            raise ConfigError(
                f"selection.false_negative_margin is for scores of a model, and "
                f"selection.score={self.score!r} has none; set it to None."
            )
        if self.false_negative_margin is not None and self.method != "joint":
            raise ConfigError(
                "selection.false_negative_margin is for selection.method='joint'; independent "
                "selection has no negatives. Change one of the two."
            )

    @property
    def by_concept(self) -> bool:
        """Whether the score is made of concepts, and of no model."""
        return self.score in ("concept_balance", "concept_count")

    def gain_of(self, loss: str) -> float:
        """The gain for the given loss, "sigmoid" or "softmax"."""
        if loss == "softmax" and self.softmax_gain is not None:
            return self.softmax_gain
        return self.gain

    def check_loss(self, loss: str) -> None:
        """Raises a ConfigError unless candidates can be scored by `loss`."""
        if loss not in ("sigmoid", "softmax"):
            raise ConfigError(f"Selection scores 'sigmoid' or 'softmax' losses, got {loss!r}.")
        damps = self.false_negative_margin is not None
        if damps and loss == "softmax" and self.first_chunk == "score":
            raise ConfigError(
                "With the softmax loss the first chunk is drawn by losses against the whole "
                "super-batch, in which false negatives count; set selection.first_chunk = "
                "'uniform', or selection.false_negative_margin to None."
            )

    def for_batch(self, size: int, super_batch: int | None = None) -> "SelectionConfig":
        """Returns the settings with a number of strata, for `size` of `super_batch` candidates.

        None becomes the largest power of two, at most 256, that divides super-batch and sub-batch
        and gives every stratum at least 128 picks, or else 1. It depends on the sizes only, so the
        picks are the same on any devices. benchmarks/results/strata.csv has the effect of strata
        on the joint score. Without `super_batch` its size follows from `filter_ratio`.
        """
        if self.strata is not None:
            return self
        candidates = round(size / (1 - self.filter_ratio)) if super_batch is None else super_batch
        strata = _MOST_STRATA
        while strata > 1 and (
            candidates % strata or size % strata or size // strata < _LEAST_SHARE
        ):
            strata //= 2
        return dataclasses.replace(self, strata=strata)

    def super_batch_size(self, size: int) -> int:
        """B for a sub-batch of `size`: size / (1 - filter_ratio), to the nearest whole stratum.

        Raises:
            ConfigError: as `check`.
        """
        strata = self.for_batch(size).strata
        super_batch = max(1, round(size / (1 - self.filter_ratio) / strata)) * strata
        self.check(super_batch, size)
        return super_batch

    def sub_batch_size(self, super_batch: int) -> int:
        """b for a super-batch of B, the inverse of `super_batch_size`; `strata` must be a number.

        `super_batch_size` rounds B to whole strata. b is the nearest multiple of strata and chunks,
        which undoes the rounding.

        Raises:
            ConfigError: as `check`, or `strata` is None, which depends on b.
        """
        if self.strata is None:
            raise ConfigError(
                f"The number of picks from a super-batch of {super_batch} depends on "
                f"selection.strata, which is None; set it, or call for_batch(b) first."
            )
        unit = math.lcm(self.strata, self._draws)
        size = round(super_batch * (1 - self.filter_ratio) / unit) * unit
        self.check(super_batch, size)
        return size

    def check(self, super_batch: int, size: int) -> None:
        """Raises a ConfigError unless `size` of `super_batch` can be drawn in equal shares."""
        if not 0 < size <= super_batch:
            raise ConfigError(
                f"Cannot choose {size} of a super-batch of {super_batch}: the sub-batch must be "
                f"positive and not larger than the super-batch."
            )
        strata = self.for_batch(size, super_batch).strata
        if super_batch % strata:
            raise ConfigError(
                f"The super-batch of {super_batch} is not divisible by selection.strata="
                f"{strata}; change the batch size or selection.strata."
            )
        for name, parts in (("chunks", self._draws), ("strata", strata)):
            if size % parts:
                raise ConfigError(
                    f"The sub-batch of {size} is not divisible by selection.{name} = {parts}; "
                    f"change the batch size or selection.{name}."
                )

    @property
    def _draws(self) -> int:
        """Number of draws per sub-batch."""
        return self.chunks if self.method == "joint" else 1
