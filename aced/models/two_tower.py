"""The two-tower model: an image and a text tower, a learned temperature and a learned bias."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from aced.bounds import PositiveFloat, PositiveInt
from aced.config import ConfigError
from aced.data.tokenizers import TokenizerConfig
from aced.models import presets
from aced.models.base import ModelConfig
from aced.models.swin import Swin
from aced.models.text import TextConfig, TextTower
from aced.models.vit import ImageConfig, Images, ViT
from aced.outputs import Embeddings
from aced.parallel.mesh import constrain_by_example


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig(ModelConfig):
    """A whole model. The defaults are SigLIP B/16 at 256 px (arXiv 2303.15343)."""

    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    # Channels of both embeddings. None: the image tower's width, and then the image tower has no
    # projection (SigLIP). A number: the image tower ends in a projection without bias (CLIP).
    embed_dim: PositiveInt | None = None
    init_scale: PositiveFloat = 10.0  # temperature t at the start (SigLIP); CLIP: 1 / 0.07
    # Logit bias at the start: -10 for batches of 32k (SigLIP), near -log(batch) for smaller ones.
    # None: no such parameter (softmax loss, CLIP).
    init_bias: float | None = -10.0

    END_OF_TEXT: ClassVar[str] = "text.eot_id"

    def _check(self) -> None:
        super()._check()
        if self.image.pool in ("none", "all"):
            raise ConfigError(
                f"image.pool = {self.image.pool!r} gives no embedding, which two towers need; "
                "choose a pooling."
            )

    @property
    def width(self) -> int:
        """Channels of both embeddings."""
        return self.embed_dim if self.embed_dim is not None else self.image.out_width

    @property
    def end_of_text(self) -> int | None:
        """The id at which texts are pooled; None: they are pooled at the last position."""
        return self.text.eot_id if self.text.pool == "eot" else None

    def build(self, int8: bool = False) -> "TwoTower":
        """Returns the model's module."""
        return TwoTower(self, int8)


def preset(name: str, **changes: Any) -> TwoTowerConfig:
    """Returns `presets.MODELS[name]`, with `changes`; its tokenizer is cut to its length.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in presets.MODELS:
        raise ConfigError(f"model must be one of {', '.join(presets.MODELS)}, got {name!r}.")
    fields = dict(presets.MODELS[name])
    fields["image"] = ImageConfig(**fields["image"])
    fields["text"] = TextConfig(**fields["text"])
    fields["tokenizer"] = TokenizerConfig(length=fields["text"].length)
    return TwoTowerConfig(**(fields | changes))


class TwoTower(nn.Module):
    """Maps images and texts to `Embeddings`.

    Parameters: image, text, t (log of the scale), bias.
    """

    config: TwoTowerConfig
    int8: bool = False  # products with the blocks' weights in 8 bits: forward passes only

    def setup(self):
        """Builds the submodules."""
        config = self.config
        compute = config.compute(self.int8)
        tower = {"vit": ViT, "swin": Swin}[config.image.architecture]
        self.image = tower(config.image, config.embed_dim, compute)
        self.text = TextTower(config.text, config.width, compute)
        # The logarithm is learned, so that the scale stays positive.
        self.t = self.param("t", nn.initializers.constant(math.log(config.init_scale)), ())
        if config.init_bias is not None:
            self.bias = self.param("bias", nn.initializers.constant(config.init_bias), ())

    def encode_image(self, image: Images) -> Float[Array, "b d"]:
        """Returns zimg, L2-normalised, float32.

        Raises:
            ValueError: the images do not have `image.resolution` pixels a side.
        """
        return l2_normalize(constrain_by_example(self.image(image)))

    def encode_text(self, text: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Returns ztxt, L2-normalised, float32.

        Raises:
            ValueError: the texts are longer than `text.length`.
        """
        return l2_normalize(constrain_by_example(self.text(text)))

    def __call__(self, image: Images, text: Int[Array, "b l"]) -> Embeddings:
        """Returns the embeddings of paired images and texts, with this model's scale and bias."""
        zimg, ztxt = self.encode_image(image), self.encode_text(text)
        scale, bias = logit_parameters(self.variables["params"])
        return Embeddings(zimg=zimg, ztxt=ztxt, scale=scale, bias=bias)

    embed = everything = __call__


def l2_normalize(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Returns z / |z|; for z = 0, zero with a finite gradient."""
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24))


def logit_parameters(params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the scale and the bias of the logits, which is zero without such a parameter."""
    return jnp.exp(params["t"]), params.get("bias", jnp.zeros(()))
