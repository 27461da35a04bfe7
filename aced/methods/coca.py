"""CoCa's pretraining: one forward pass for a contrastive and a captioning loss (arXiv 2205.01917).

    L = contrastive_weight * L_contrastive + captioning_weight * L_captioning

The rest is the method `contrastive`, with one more loss term, so ACID selection and distillation
also work for CoCa, through its contrastive head.
"""

import dataclasses
import functools
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from aced.bounds import NonNegativeFloat, OneOf
from aced.config import ConfigError
from aced.cost import flops
from aced.losses import LOSSES, captioning
from aced.methods.contrastive import Contrastive
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.models import coca, two_tower
from aced.models.coca import CoCaConfig
from aced.outputs import Embeddings, Words
from aced.parallel.micro_batch import map_micro_batches


@dataclasses.dataclass(frozen=True)
class CoCaTrainConfig(ContrastiveConfig):
    """Settings of the method `coca`. A loss with weight 0 is not computed.

    Parameters that only this loss would train are then frozen, to protect them from weight decay.
    """

    name: str = "coca"
    model: CoCaConfig = CoCaConfig()
    loss: Annotated[str, OneOf(LOSSES)] = "softmax"
    # CoCa weights the sum of both directions by 1; our softmax loss is their mean.
    contrastive_weight: NonNegativeFloat = 2.0
    captioning_weight: NonNegativeFloat = 2.0

    def _check_weights(self) -> None:
        if not (self.contrastive_weight or self.captioning_weight):
            raise ConfigError(
                "One of method.contrastive_weight and method.captioning_weight must be above 0."
            )

    @property
    def only_distils(self) -> bool:
        """False: `_check_weights` refuses settings without a loss beside distillation."""
        return False

    def _check(self) -> None:
        super()._check()
        if self.loss == "sigmoid":
            raise ConfigError("CoCa has no bias, which the sigmoid loss needs; set method.loss.")
        if self.multi_resolution_every:
            raise ConfigError(
                "method.multi_resolution_every trains on shorter texts and larger patches, which "
                "captioning cannot be trained on; set it to 0 with the method 'coca'."
            )
        if self.model.classes:
            raise ConfigError(
                "method.model.classes belongs to the method 'coca_task': pretraining has no "
                "questions; set it to 0."
            )


class CoCaTraining(Contrastive):
    """The method: `Contrastive`, with captions."""

    config: CoCaTrainConfig

    def __init__(self, config: CoCaTrainConfig):
        super().__init__(config)
        if not config.captioning_weight:
            self.fixed = (f"model/({coca.CAPTIONING_ONLY})",)
        elif not config.contrastive_weight and not self.distils:
            self.fixed = (f"model/({coca.CONTRASTIVE_ONLY})",)

    def _macs_beside(self) -> int:
        macs = flops.macs_coca(self.config.model)
        return macs.multimodal + macs.softmax if self.config.captioning_weight else 0

    def _task(
        self, params: PyTree, batch: dict[str, Array], shift: Embeddings | None
    ) -> tuple[Embeddings, Float[Array, ""], dict[str, Array]]:
        """The learner's embeddings of a sub-batch, the weighted loss, and each loss alone."""
        config = self.config
        if config.captioning_weight:
            learner, words, real = self._forward(params["model"], batch)
        else:
            learner = self.learner.embed(params["model"], batch)
        loss, parts = jnp.float32(0), {}
        if config.contrastive_weight:
            matching = self._contrastive_loss(learner, shift)
            loss += config.contrastive_weight * matching
            parts["loss/contrastive"] = matching
        if config.captioning_weight:
            losses = captioning.word_losses(words, batch["text"], real)
            loss += config.captioning_weight * losses.cross_entropy
            parts |= {"loss/captioning": losses.cross_entropy, "word_accuracy": losses.accuracy}
        return learner, loss, parts

    def _forward(
        self, params: PyTree, batch: dict[str, Array]
    ) -> tuple[Embeddings, Words, Bool[Array, "b l"]]:
        """Embeddings and words of a sub-batch, in micro-batches."""
        forward = functools.partial(coca.forward, self.config.model, params)

        def rows(piece: tuple[Array, Array]) -> tuple[Array, ...]:
            out = forward(*piece)
            return out.embeddings.zimg, out.embeddings.ztxt, out.words.states, out.real

        pair, size = (batch["image"], batch["text"]), self.config.train_micro_batch
        zimg, ztxt, states, real = map_micro_batches(rows, pair, size, "method.train_micro_batch")
        words = Words(states, params["text"]["softmax"]["kernel"])
        return Embeddings(zimg, ztxt, *two_tower.logit_parameters(params)), words, real
