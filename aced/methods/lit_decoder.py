"""LiT-Decoder: how much an image encoder knows, by what a small decoder can say of what it sees.

Of a trained two-tower model the image tower stays as it is, and a text decoder learns to write
captions, or to answer questions, from its tokens, which it reads by cross-attention (arXiv
2411.18674 compares encoders so: CIDEr of captions, accuracy of answers). The decoder is CoCa's, so
that evaluations are the same; without CoCa's pooler between the two, unless `model.queries` asks
for one. Open in what could be read of the paper, and settings here: the decoder's size and words,
the schedule, and how answers are given, here chosen by CoCa's head.
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
GIVEN = ("image",)  # the part of the model that is the encoder's: never trained


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TrainedConfig):
    """The encoder, which becomes part of the model: read at the start alone, and never another."""

    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class LitDecoderConfig(CoCaTaskConfig):
    """Settings of the method `lit_decoder`."""

    name: str = "lit_decoder"
    # Its image tower and preprocessing are the encoder's, whatever is here; text and tokenizer are
    # the decoder's.
    model: CoCaConfig = CoCaConfig(queries=0)
    encoder: EncoderConfig = EncoderConfig()

    @property
    def frozen(self) -> dict[str, TrainedConfig]:
        """The encoder, by its name."""
        return {ENCODER: self.encoder}

    @property
    def named(self) -> dict[str, TrainedConfig]:
        """None: nobody keeps all tokens of a data set."""
        return {}

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Of its task. There are no embeddings: the encoder's own are its run's to evaluate."""
        return (self.task,)

    def resolve(self, workdir: str) -> "LitDecoderConfig":
        """Returns the same with the image tower as it was trained.

        Raises:
            ConfigError: there is no encoder, or it has no sequence of tokens.
        """
        if not self.encoder.checkpoint:
            raise ConfigError(
                "method.encoder.checkpoint is empty; set it to the workdir of a finished run or to "
                "what python -m aced.convert wrote."
            )
        return super().resolve(workdir)

    def with_frozen(self, frozen: Mapping[str, TrainedConfig]) -> "LitDecoderConfig":
        """Returns the same with this encoder, whose architecture is known."""
        encoder = frozen[ENCODER]
        model = reading(self.model, encoder.model)
        return dataclasses.replace(self, encoder=encoder, model=model)


def reading(model: CoCaConfig, encoder: TwoTowerConfig) -> CoCaConfig:
    """Returns `model` with the image tower of `encoder`, all of whose tokens it reads.

    Raises:
        ConfigError: it is none that has a sequence of tokens.
    """
    image = encoder.image
    if image.architecture != "vit":
        raise ConfigError(
            f"The encoder is a {image.architecture!r}; the decoder reads the tokens of a vision "
            "transformer. Choose another model for method.encoder."
        )
    image = dataclasses.replace(image, pool="all" if image.has_cls else "none")
    return dataclasses.replace(model, image=image, resize=encoder.resize)


class LitDecoder(CoCaTask):
    """The method: `CoCaTask`, with an image tower that is given and gets no gradient."""

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

    def _said(self, params: PyTree, batch: dict[str, Array]) -> Answers:
        """What the model says; no backward pass goes through its encoder."""
        frozen = {name: jax.lax.stop_gradient(params[name]) for name in GIVEN}
        return super()._said(params | frozen, batch)
