"""LiT-Decoder: evaluates an image encoder by training a small text decoder on its tokens.

The image tower of a trained two-tower model stays frozen. A text decoder reads its tokens by
cross-attention and learns to write captions or to answer questions; arXiv 2411.18674 compares
encoders by the CIDEr of the captions and the accuracy of the answers. The decoder is CoCa's, so the
evaluations are shared; CoCa's pooler is left out unless `model.queries` is set. We had no access to
the paper's decoder size, vocabulary, schedule and form of answers, so these are settings: answers
are chosen by CoCa's head, or written.
"""

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, PyTree

from aced.config import ConfigError
from aced.cost import flops
from aced.methods import coca_task
from aced.methods.coca_task import Answers, CoCaTask, CoCaTaskConfig
from aced.methods.frozen import TrainedConfig
from aced.models.coca import CoCaConfig
from aced.models.two_tower import TwoTowerConfig

ENCODER = "encoder"
GIVEN = ("image",)  # the part copied from the encoder, and never trained


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TrainedConfig):
    """The encoder, which becomes part of the model: it is read only when a run starts."""

    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class LitDecoderConfig(CoCaTaskConfig):
    """Settings of the method `lit_decoder`."""

    name: str = "lit_decoder"
    # Its image tower and preprocessing are replaced by the encoder's; text and tokenizer are the
    # decoder's.
    model: CoCaConfig = CoCaConfig(queries=0)
    encoder: EncoderConfig = EncoderConfig()

    @property
    def frozen(self) -> dict[str, TrainedConfig]:
        """The encoder."""
        return {ENCODER: self.encoder}

    @property
    def named(self) -> dict[str, TrainedConfig]:
        """Empty: the tokens of a data set are too many to cache."""
        return {}

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Only that of the task; the encoder's embeddings are evaluated in its own run."""
        return (self.task,)

    def resolve(self, workdir: str) -> "LitDecoderConfig":
        """Returns the settings with the image tower as it was trained.

        Raises:
            ConfigError: the encoder is missing.
        """
        if not self.encoder.checkpoint:
            raise ConfigError(
                "method.encoder.checkpoint is empty; set it to the workdir of a finished run or a "
                "folder written by python -m aced.convert."
            )
        return super().resolve(workdir)

    def with_frozen(self, frozen: Mapping[str, TrainedConfig]) -> "LitDecoderConfig":
        """Returns the settings with the given encoder, and its image tower in the model."""
        encoder = frozen[ENCODER]
        model = reading(self.model, encoder.model)
        return dataclasses.replace(self, encoder=encoder, model=model)


def reading(model: CoCaConfig, encoder: TwoTowerConfig) -> CoCaConfig:
    """Returns `model` with the image tower of `encoder`, reading all its tokens.

    Those of a Swin transformer are the last stage's.
    """
    image = encoder.image
    if image.architecture == "vit":
        image = dataclasses.replace(image, pool="all" if image.has_cls else "none")
    return dataclasses.replace(model, image=image, resize=encoder.resize)


class LitDecoder(CoCaTask):
    """The method `lit_decoder`: `CoCaTask` with a frozen image tower."""

    config: LitDecoderConfig

    def __init__(self, config: LitDecoderConfig):
        super().__init__(config)
        self.given = (config.encoder, GIVEN)
        self.fixed = (r"model/image/.*", *self.fixed)

    def flops_per_step(self, batch_size: int) -> int:
        """Floating point operations of one step; see `aced.cost.flops`."""
        task, model = self.config.task, self.config.model
        encoder = model.pictures * flops.macs_coca(model).image
        decoder = coca_task.macs(task, model) - encoder
        return flops.step_flops([(decoder, batch_size)], [(encoder, batch_size)])

    def _outputs(self, params: PyTree, batch: dict[str, Array]) -> Answers:
        """The model's outputs; no backward pass goes through its encoder."""
        frozen = {name: jax.lax.stop_gradient(params[name]) for name in GIVEN}
        return super()._outputs(params | frozen, batch)
