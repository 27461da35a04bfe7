"""Providers of a batch's embeddings: a model that runs, or embeddings stored in the batch."""

import dataclasses
import functools
from collections.abc import Callable

from jaxtyping import Array, PyTree

from aced.data.batch_spec import View, embeddings_of, view_of
from aced.methods import scoring
from aced.methods.scoring import ScoringConfig
from aced.models import two_tower
from aced.models.base import ModelConfig
from aced.outputs import Embeddings
from aced.parallel.micro_batch import map_micro_batches

Logits = Callable[[PyTree | None], tuple[Array, Array]]  # scale and bias, given the parameters


@dataclasses.dataclass(frozen=True)
class Running:
    """A model that runs on its own view of the batch."""

    model: ModelConfig
    prefix: str  # of the model's inputs in the batch
    micro_batch: int  # examples at a time over all devices; 0: all at once
    setting: str  # name of the setting of `micro_batch`, for errors
    scoring: ScoringConfig = ScoringConfig()
    every: int = 1  # one example in `every` runs as in `scoring`, the others in full
    logits: Logits = two_tower.logit_parameters

    @property
    def view(self) -> View:
        """The model's view of an example."""
        return View.of(self.scoring.seen_by(self.model))

    def macs(self, examples: int) -> int:
        """MACs of one forward pass of `examples` pairs; see `aced.cost.flops`."""
        scored = examples // self.every
        cheap, full = (sum(scoring.macs(self.model, s)) for s in (self.scoring, ScoringConfig()))
        return scored * cheap + (examples - scored) * full

    def embed(self, params: PyTree, batch: dict[str, Array]) -> Embeddings:
        """Returns the embeddings of all rows; differentiable unless scoring is int8."""
        if self.every == 1:
            embed = functools.partial(scoring.embed, self.model, self.scoring, params)
        else:
            embed = functools.partial(
                scoring.embed_mixed, self.model, self.scoring, self.every, params
            )

        def rows(piece: tuple[Array, Array]) -> tuple[Array, Array]:
            e = embed(*piece)
            return e.zimg, e.ztxt

        view = view_of(batch, self.prefix)
        zimg, ztxt = map_micro_batches(rows, view, self.micro_batch, self.setting)
        return Embeddings(zimg, ztxt, *self.logits(params))


@dataclasses.dataclass(frozen=True)
class Stored:
    """Embeddings stored in the batch: from a cache, or from the scoring pass."""

    prefix: str
    logits: Logits

    def macs(self, examples: int) -> int:
        """Zero: nothing is computed."""
        del examples
        return 0

    def embed(self, params: PyTree | None, batch: dict[str, Array]) -> Embeddings:
        """Returns the embeddings of all rows; only scale and bias are read from `params`."""
        return Embeddings(*embeddings_of(batch, self.prefix), *self.logits(params))


Provider = Running | Stored
